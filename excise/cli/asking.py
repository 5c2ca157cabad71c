"""Options of commands that ask a language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excise.cli import bounds

if TYPE_CHECKING:
    from excise.chat import Backend

TIMEOUT = 300.0
"""Seconds for an answer from a server: ten pairs take a small machine longer than a word does."""

ModelName = Annotated[
    str | None,
    typer.Option("--model-name", help="The server's name of the model; for transformers a folder or hub name."),
]
BaseUrl = Annotated[str | None, typer.Option("--base-url", help="The server's endpoint. Default: OpenAI's own.")]
KeyVariable = Annotated[
    str, typer.Option("--api-key-env", help="The environment variable that holds the server's key.")
]
KEY = "OPENAI_API_KEY"
Jobs = Annotated[int, typer.Option("--jobs", help="Questions asked at a time.", **bounds.JOBS)]
Answers = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder that keeps answers, so that none is paid twice. Default: beside the file."),
]


def asked(kind: str, nobody: str, model: str | None, base_url: str | None, key: str, device: str) -> Backend | None:
    """The backend named, or None where that is `nobody`. Raises ExciseError for options that are another's."""
    from excise.chat import backend
    from excise.errors import ExciseError

    if kind == nobody:
        if model is not None or base_url is not None:
            raise ExciseError(f"--backend {nobody} needs no model; say --backend openai or transformers as well")
        return None
    if kind == "openai":
        if model is None:
            raise ExciseError("name the server's model with --model-name")
        return backend(kind, model=model, base_url=base_url, key_variable=key, timeout=TIMEOUT)
    if kind == "transformers":
        if model is None or base_url is not None:
            raise ExciseError("transformers needs --model-name, a folder or hub name, and no --base-url")
        return backend(kind, model=model, device=device)
    raise ExciseError(f"no backend {kind!r}; it is openai, transformers or {nobody}")
