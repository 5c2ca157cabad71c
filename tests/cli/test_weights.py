"""Every command that loads a model takes its precision, revision and variant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main

from excise.app.models import resolve
from excise.cli import app


def commands(group: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    for own, command in getattr(group, "commands", {}).items():
        yield from commands(command, f"{name} {own}".strip())
    if not hasattr(group, "commands"):
        yield name, group


LOADING = {
    name: command
    for name, command in commands(typer.main.get_command(app))
    if any("--model" in parameter.opts for parameter in command.params)
    and name not in ("neurons browse", "bench resume", "sae corpus")
}
"""Commands that compute with a model; `sae corpus` needs its tokenizer alone."""


def test_commands_that_load_a_model_were_found() -> None:
    assert {"find", "erase", "generate", "verify", "audit", "bench run", "sae train", "neurons build"} <= set(LOADING)


@pytest.mark.parametrize("name", LOADING)
def test_each_takes_dtype_revision_and_variant(name: str) -> None:
    options = {opt for parameter in LOADING[name].params for opt in parameter.opts}
    assert options >= {"--device", "--dtype", "--revision", "--variant"}


@pytest.mark.parametrize(("dtype", "expected"), [(None, torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_model_is_loaded_in_the_dtype_asked_for(
    dtype: str | None,
    expected: torch.dtype,
    call: Callable[..., Any],
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    seen, load = [], resolve.load_pipeline
    monkeypatch.setattr(resolve, "load_pipeline", lambda *given: seen.append(load(*given)) or seen[0])
    asked = () if dtype is None else ("--dtype", dtype)
    call("generate", "--prompt", "a gun", "--model", model_folder, *asked, "--steps", 1, "--out", tmp_path / "a.png")
    assert {p.dtype for name in ("unet", "vae", "text_encoder") for p in getattr(seen[0], name).parameters()} == {
        expected
    }


def test_what_does_not_fit_is_one_line(call: Callable[..., Any], tmp_path: Path) -> None:
    prompt = ("generate", "--prompt", "a gun", "--out", tmp_path / "gun.png")
    for words, message in (
        (("--dtype", "int8"), "choose from auto, float32, float16, bfloat16"),
        (("--revision", "main"), "for another model"),
        (("--variant", "fp16"), "for another model"),
    ):
        result = call(*prompt, *words)
        assert result.exit_code == 2, result.output
        assert len(result.stderr.strip().splitlines()) == 1
        assert message in result.stderr
