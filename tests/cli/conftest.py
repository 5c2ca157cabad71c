from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def call() -> Callable[..., Any]:
    """Runs `excise` in this process; the result has exit_code, stdout and stderr. `call("find", "gun", "--json")`."""
    from typer.testing import CliRunner

    from excise.cli import app

    return lambda *args: CliRunner().invoke(app, [str(a) for a in args])


@pytest.fixture
def ask(call: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a command that must succeed with --json, and returns what it printed."""

    def asked(*args: Any) -> Any:
        result = call(*args, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return asked


@pytest.fixture(scope="session")
def model_folder(
    build_pipe: Callable[..., Any], clip_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A tiny random pipeline on disk, the same as `tiny_pipe`. As there, its tokenizer is loaded once a worker."""
    from transformers import PreTrainedTokenizerBase

    folder = tmp_path_factory.mktemp("model") / "tiny"
    build_pipe().save_pretrained(folder)
    load = PreTrainedTokenizerBase.from_pretrained.__func__

    def once(cls: type[Any], *given: Any, **options: Any) -> Any:
        if given and str(given[0]) == str(folder / "tokenizer"):
            return clip_tokenizer
        return load(cls, *given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedTokenizerBase, "from_pretrained", classmethod(once))
        yield folder


@pytest.fixture
def sae_folder(word_sae: Any, tiny_site: Any, tmp_path: Path) -> Path:
    """`word_sae` on disk: its neuron 5 answers to "gun"."""
    from excise import sae

    sae.save(word_sae, tmp_path / "word-sae", {"site": asdict(tiny_site), "corpus": "made for a test"})
    return tmp_path / "word-sae"
