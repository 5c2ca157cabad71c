"""Options of commands that ask a language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excise.cli import bounds

if TYPE_CHECKING:
    from excise.chat import Backend

TIMEOUT = 300.0
"""Seconds to wait for a server's answer. A small machine needs that long to write ten pairs."""

ModelName = Annotated[
    str | None,
    typer.Option("--model-name", help="The model's name on the server; for transformers, a folder or hub name."),
]
BaseUrl = Annotated[str | None, typer.Option("--base-url", help="The server's endpoint. Default: OpenAI's.")]
KeyVariable = Annotated[str, typer.Option("--api-key-env", help="Environment variable that holds the API key.")]
KEY = "OPENAI_API_KEY"
Jobs = Annotated[int, typer.Option("--jobs", help="How many questions to ask at once.", **bounds.JOBS)]
Answers = Annotated[
    Path | None,
    typer.Option(
        "--cache", help="Folder that keeps the answers, so that none is paid for twice. Default: next to the file."
    ),
]


def chosen_backend(
    kind: str, none: str, model: str | None, base_url: str | None, key: str, device: str
) -> Backend | None:
    """Return the backend of this kind, or None if `kind` is `none`.

    Raises ExciseError for options that belong to another backend.
    """
    from excise.chat import backend
    from excise.errors import ExciseError

    if kind == none:
        if model is not None or base_url is not None:
            raise ExciseError(f"--backend {none} uses no model; add --backend openai or --backend transformers")
        return None
    if kind == "openai":
        if model is None:
            raise ExciseError("name the server's model with --model-name")
        return backend(kind, model=model, base_url=base_url, key_variable=key, timeout=TIMEOUT)
    if kind == "transformers":
        if model is None or base_url is not None:
            raise ExciseError("transformers needs --model-name, a folder or hub name, and no --base-url")
        return backend(kind, model=model, device=device)
    raise ExciseError(f"unknown backend {kind!r}; choose openai, transformers or {none}")
