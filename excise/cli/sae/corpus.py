"""`excise sae corpus`: prompts as token ids, for trainings on many of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli.options import Column, Engine, Json, Model, PromptFiles, RetryFailed, Workers
from excise.cli.sae.comparing import app
from excise.cli.terminal import emit, key_values, note, progress
from excise.cli.weights import choosing_weights
from excise.errors import ExciseError
from excise.outputs import check_resumed

__all__ = ["app"]


@app.command(epilog="Example: excise sae corpus --prompts prompts.parquet --model $MODEL --out corpus")
@choosing_weights
def corpus(
    prompts: PromptFiles,
    out: Annotated[Path, typer.Option("--out", help="Folder for the corpus.")],
    column: Column = "prompt",
    model: Model = None,
    component: Annotated[
        str, typer.Option("--component", help="Text encoder whose tokenizer is used: a CLIP one.")
    ] = "text_encoder",
    weights: Weights = DEFAULT,
    workers: Workers = 1,
    engine: Engine = None,
    retry_failed: RetryFailed = False,
    json: Json = False,
) -> None:
    """Tokenise prompts once, for `excise sae train --corpus`. Repeat the command to resume it.

    Token ids take two bytes each, or four if the vocabulary exceeds 65,535. Memory does not grow with the number of
    prompts. Needs the extra `parquet`.
    """
    check_resumed(out)
    from excise.app.models.loader import Loader
    from excise.app.reading.tokenising import build
    from excise.concepts.parts import parts_of
    from excise.engine import check_engine

    check_engine(engine, workers)
    if not prompts.exists():
        raise ExciseError(f"{prompts} does not exist; check --prompts")
    parts = list(parts_of(prompts))
    load = Loader(model, "cpu", weights)
    pipe = load()
    how: dict[str, Any] = {"engine": engine, "workers": workers, "retry": retry_failed}
    with progress("tokenising", len(parts)) as advance:
        made = build(pipe, component, prompts, parts, out, load, column=column, progress=advance, **how)
    if made is None:
        note("the first slice writes the manifest")
        return
    note(f"saved in {out}")
    data: dict[str, Any] = {
        "folder": str(out),
        "prompts": made.prompts,
        "tokens": made.tokens,
        "files": len(made.files),
        "type": made.type,
        "bytes": sum((out / name).stat().st_size for name, _ in made.files),
        "digest": made.digest,
    }
    rows = [(name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in data.items()]
    emit(json, data, lambda: key_values(f"Corpus {out}", rows))
