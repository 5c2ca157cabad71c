from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from excise.concepts import builtin
from tests import tiny

Call = Callable[..., Any]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A user's own model, and a file of prompts."""
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tiny.build("sd1").save_pretrained(tmp_path / "model")
    pairs = builtin("gun", 20).pairs
    (tmp_path / "prompts.txt").write_text("\n".join(side for pair in pairs for side in (pair.concept, pair.deconcept)))
    return tmp_path / "model", tmp_path / "prompts.txt"


def test_a_models_sae_is_trained_once_and_found_again(own: tuple[Path, Path], call: Call, tmp_path: Path) -> None:
    model, prompts = own
    common = ("erase", "gun", "--n", 20, "--model", model, "--accept-weak")
    first = call(*common, "--prompts", prompts, "--tokens", 4096, "--out", tmp_path / "first")
    assert first.exit_code == 0, first.output
    assert "has no SAE yet: training one on 40 prompts, about 1 min, " in first.stderr
    assert "Next: excise generate" in first.stdout
    again = call(*common, "--out", tmp_path / "again")
    assert again.exit_code == 0 and "training" not in again.stderr
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (tmp_path / "first" / "manifest.json").read_bytes()


def test_without_prompts_or_a_hub_nothing_is_trained(own: tuple[Path, Path], call: Call, tmp_path: Path) -> None:
    result = call("erase", "gun", "--model", own[0], "--out", tmp_path / "gun")
    assert result.exit_code == 2 and "give --prompts FILE" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "gun").exists() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("options", [("--prompts", "p.txt"), ("--tokens", "4096")])
def test_the_bundled_models_sae_is_there(options: tuple[str, str], call: Call, tmp_path: Path) -> None:
    result = call("erase", "gun", "--out", tmp_path / "gun", *options)
    assert result.exit_code == 2 and f"{options[0]} is only for training an SAE" in result.stderr


def test_prompts_that_cannot_be_read_are_refused_before_the_model_is_loaded(
    own: tuple[Path, Path], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from excise.app.models import resolve

    monkeypatch.setattr(resolve, "load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    result = call("erase", "gun", "--model", own[0], "--out", tmp_path / "gun", "--prompts", tmp_path / "nope.txt")
    assert result.exit_code == 2 and "nope.txt" in result.stderr
