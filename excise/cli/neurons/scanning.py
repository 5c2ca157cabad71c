"""`excise neurons scan`: what a few neurons do on any number of prompts."""

from __future__ import annotations

import json as json_
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.neurons.explaining import app
from excise.cli.options import (
    Column,
    Device,
    Engine,
    Force,
    Json,
    Model,
    PromptFiles,
    RetryFailed,
    Sae,
    SiteOption,
    Workers,
)
from excise.cli.terminal import aligned, echo, emit, note, progress, table
from excise.cli.weights import choosing_weights
from excise.errors import ExciseError
from excise.outputs import check_file

if TYPE_CHECKING:
    from excise.app.neurons.scan import Scan

__all__ = ["app"]


@app.command(epilog="Example: excise neurons scan --neurons 930 --prompts prompts.txt --out scan.json")
@choosing_weights
def scan(
    neurons: Annotated[str, typer.Option("--neurons", help='Numbers of the neurons: "930, 12".')],
    prompts: PromptFiles,
    out: Annotated[Path, typer.Option("--out", help="JSON file for the result.")],
    column: Column = "prompt",
    keep: Annotated[int, typer.Option("--top", help="Strongest prompts to keep per neuron.", **bounds.COUNT)] = 20,
    model: Model = None,
    sae: Sae = None,
    site: SiteOption = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    workers: Workers = 1,
    engine: Engine = None,
    retry_failed: RetryFailed = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Count where neurons fire on a corpus of any size, and keep their strongest prompts.

    Memory does not grow with the corpus. Each part of it is done once its file next to --out exists; repeat the command
    to resume.
    """
    check_file(out, (".json",), force=force)
    from excise.app.models.loader import Loader
    from excise.app.models.resolve import parse_site, sae_folder
    from excise.app.neurons.database import place_of
    from excise.app.neurons.scanning import Scanning
    from excise.app.neurons.scanning import scan as scanned
    from excise.concepts.parts import parts_of
    from excise.engine import check_engine, is_first, is_here
    from excise.files import sha256, write_atomic
    from excise.sae import load

    check_engine(engine, workers)
    folder = sae_folder(model, sae)
    loaded = load(folder)
    chosen = _numbers(neurons, loaded.config.m)
    if not prompts.exists():
        raise ExciseError(f"{prompts} does not exist; check --prompts")
    parts = list(parts_of(prompts))
    loader, here = Loader(model, device, weights), is_here(engine, workers)
    pipe = loader() if here else replace(loader, device="cpu")()
    place = place_of(pipe, folder, None if site is None else parse_site(pipe, site))
    stage = Scanning(loader, str(folder), sha256(folder / "sae.safetensors"), place, chosen, column, keep, str(out))
    with progress("scanning", len(parts)) as advance:
        own = (pipe, loaded.to(device)) if here else None
        found = scanned(stage, parts, engine, workers, retry_failed, advance, own)
    if found is None:
        note("another slice could not scan all of its parts, so they are not merged; its own error line says why")
        emit(json, {}, lambda: None)
        return
    data = {"sae": stage.digest, "site": place.key, "files": sorted({part.path for part in parts}), **found.to_json()}
    if is_first(engine, workers):
        write_atomic(out, json_.dumps(data, indent=1) + "\n")
        note(f"wrote {out}")
    emit(json, data, lambda: _show(found))


def _numbers(text: str, m: int) -> tuple[int, ...]:
    """Return the neurons' numbers. Raises ExciseError for another text, or numbers that the SAE does not have."""
    try:
        chosen = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise ExciseError(f'--neurons {text!r} is not a list of numbers; write "930, 12"') from error
    if odd := [n for n in chosen if not 0 <= n < m]:
        raise ExciseError(f"the SAE has no neuron {odd[0]}; its {m:,} neurons are numbered from 0")
    return chosen


def _show(found: Scan) -> None:
    tops = [top[0] if top else None for top in found.tops]
    rows = [
        (
            str(neuron),
            f"{int(found.fired[n]):,}",
            f"{int(found.fired[n]) / max(1, found.prompts):.3%}",
            f"{int(found.fired_tokens[n]) / max(1, found.tokens):.3%}",
            peak,
            top.prompt if top else "-",
        )
        for n, (neuron, top, peak) in enumerate(
            zip(found.neurons, tops, aligned([top.peak if top else None for top in tops]), strict=True)
        )
    ]
    table(
        f"{found.prompts:,} prompts, {found.tokens:,} tokens",
        ("neuron", "prompts", "of prompts", "of tokens", "largest code", "strongest prompt"),
        rows,
    )
    if not found.prompts:
        echo("there is no prompt")
