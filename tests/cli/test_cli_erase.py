"""find, erase, verify and generate, one after the other, on a tiny random pipeline on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def common(model_folder: Path, sae_folder: Path) -> tuple[Any, ...]:
    # The random encoder's neuron also stirs without the word, hence the tolerance.
    return ("--model", model_folder, "--sae", sae_folder, "--n", 30, "--tolerance", 0.9)


def test_find_ranks_neurons_and_draws(ask: Callable[..., Any], common: tuple[Any, ...], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = ask("find", "gun", *common, "--top", 3, "--plot", tmp_path / "gun.svg")
    assert found["site"] == "text_encoder/encoder.layers.2"
    neurons = found["neurons"]
    assert 5 in [row["neuron"] for row in neurons]
    assert [row["score"] for row in neurons] == sorted((row["score"] for row in neurons), reverse=True)
    assert (tmp_path / "gun.svg").exists()
    assert (tmp_path / "gun-activations.svg").exists()


def test_from_nothing_to_an_eraser_at_work(
    ask: Callable[..., Any], call: Callable[..., Any], common: tuple[Any, ...], model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "eraser"
    made = ask("erase", "gun", *common, "--out", out, "--lam", 3, "--gate", "relu")
    assert made["lambda"] == 3
    assert made["bytes"] < 50_000
    checked = ask("verify", out, "--model", model_folder)
    assert checked["passed"]
    assert "canary" in [c["name"] for c in checked["checks"]]
    picture = tmp_path / "compare.png"
    drawn = ask(
        "generate",
        "--prompt",
        "a gun",
        "--eraser",
        out,
        "--compare",
        "--model",
        model_folder,
        "--steps",
        2,
        "--out",
        picture,
    )
    assert drawn["changed"] == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    weights = out / "eraser.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert call("verify", out, "--files-only").exit_code == 1
    refused = call(
        "generate", "--prompt", "a gun", "--eraser", out, "--model", model_folder, "--out", tmp_path / "no.png"
    )
    assert refused.exit_code == 2
    assert "altered" in refused.stderr
    assert not (tmp_path / "no.png").exists()


def test_a_site_that_does_not_exist_lists_near_ones(call: Callable[..., Any], common: tuple[Any, ...]) -> None:
    result = call("find", "gun", *common, "--site", "encoder.layers.99")
    assert result.exit_code == 2
    assert "encoder.layers.2" in result.stderr


def test_another_model_needs_an_sae(call: Callable[..., Any], model_folder: Path) -> None:
    result = call("find", "gun", "--model", model_folder)
    assert result.exit_code == 2
    assert "--sae" in result.stderr


def test_a_model_that_is_not_there(call: Callable[..., Any], sae_folder: Path, tmp_path: Path) -> None:
    result = call("find", "gun", "--model", tmp_path, "--sae", sae_folder)
    assert result.exit_code == 2
    assert "model_index.json" in result.stderr


def test_a_sweep_names_the_best_neuron_of_every_site(
    ask: Callable[..., Any], model_folder: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a {a} and a {b}\n" for a in ("gun", "cat", "bus") for b in ("rose", "dog")))
    found = ask(
        "find", "gun", "--model", model_folder, "--sweep-sites", "--prompts", prompts, "--sweep-tokens", 1000, "--n", 10
    )
    sites = [row["site"] for row in found["sites"]]
    assert sites[0] == "text_encoder/embeddings"
    assert "text_encoder/encoder.layers.2" in sites
    assert {"neuron", "score", "dominance", "auroc", "control_share", "fvu"} <= set(found["sites"][0])


def test_methods(ask: Callable[..., Any]) -> None:
    rows = {row["name"]: row for row in ask("methods")}
    assert {"none", "snce"} <= set(rows)
    assert rows["snce"]["defaults"]["k"] == 1
