"""`excise app`: open the studio, a page on which to review erasers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.options import Device, Digests, Guidance, Json, Model, Sae, Steps
from excise.cli.sources import EraserSources, at_hand
from excise.cli.terminal import echo, emit, note
from excise.cli.weights import choosing_weights
from excise.outputs import check_extra


def register(parent: typer.Typer) -> None:
    parent.command(epilog="Example: excise app --eraser gun-eraser")(app)


@choosing_weights
def app(
    eraser: EraserSources = None,
    digest: Digests = None,
    model: Model = None,
    sae: Sae = None,
    neurons: Annotated[
        Path | None,
        typer.Option("--neurons", help="Neuron database of the SAE, to search (`excise neurons build`)."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="Prompts that erasers must leave alone: .txt, .csv, .jsonl or .parquet. Default: for the bundled "
            "model, its captions.",
        ),
    ] = None,
    steps: Steps = 20,
    guidance: Guidance = None,
    port: Annotated[
        int, typer.Option("--port", help="Port on this machine; 0 takes a free one.", **bounds.PORT)
    ] = 7860,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    json: Json = False,
) -> None:
    """Open a page on which to review erasers: what they remove, what they leave alone, and their red flags.

    The page is for browsers on this machine alone, at http://127.0.0.1:7860. It sends nothing anywhere, logs no prompt,
    and reads no file but those named here. Ctrl-C closes it.
    """
    check_extra("gradio", "app", "`excise app`")
    from excise.app.models.resolve import load_pipeline, sae_folder
    from excise.app.studio.server import listening, serve
    from excise.app.studio.studio import Studio, load_candidates
    from excise.reference import GUIDANCE

    candidates = load_candidates([at_hand(one) for one in eraser or ()], digest or ())
    for name, one in candidates.items():
        if one.eraser.weak:
            note(f"warning: eraser {name} is weak: {'; '.join(one.eraser.weak)}")
    bundled = model is None
    folder = sae_folder(model, sae) if bundled or sae is not None else None
    with listening(port) as listener:
        studio = Studio(
            load_pipeline(model, device, weights),
            candidates,
            bundled=bundled,
            model=model or "bundled",
            steps=steps,
            guidance=GUIDANCE if guidance is None and bundled else guidance,
            sae=folder,
            database=neurons,
            benign=prompts,
            device=device,
        )
        serve(studio, listener, lambda address: _opened(address, list(candidates), json))


def _opened(address: str, erasers: list[str], as_json: bool) -> None:
    emit(
        as_json,
        {"address": address, "erasers": erasers},
        lambda: echo(f"open {address} in a browser on this machine; Ctrl-C closes it"),
    )
    sys.stdout.flush()  # whoever started it with a pipe waits for the address
