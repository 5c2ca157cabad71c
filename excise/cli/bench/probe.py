"""`excise probe`: what knowledge of an erased concept is left, beyond the wording of prompts."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excise.cli import bounds
from excise.cli.options import Digests, Force, Json, listed
from excise.cli.sources import EraserSource, at_hand
from excise.cli.terminal import emit, note, progress, prose, table
from excise.outputs import check_file

if TYPE_CHECKING:
    from excise.statistics import Estimate


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise probe gun-eraser --out probes.json")(probe)


def probe(
    folder: EraserSource,
    probes: Annotated[
        str | None, typer.Option("--probes", help='Probes to run: "inpainting, img2img". Default: all.')
    ] = None,
    concept: Annotated[
        str | None, typer.Option("--concept", help="Object or style of the bundled model. Default: the eraser's.")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Prompts per probe.", **bounds.COUNT)] = 8,
    steps: Annotated[int, typer.Option("--steps", help="Denoising steps.", **bounds.STEPS)] = 20,
    digest: Digests = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file for the figures.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Draw an erased concept in other ways than by a prompt: more noise, inpainting, half-drawn and inverted pictures.

    On the bundled model, whose judges say what a picture shows. The unerased model is probed too.
    """
    from excise.app.audit.probing import batches
    from excise.app.audit.probing import probe as run
    from excise.app.models.resolve import load_pipeline
    from excise.bench.probes.suite import Probes
    from excise.erasers import Eraser, eraser_folders
    from excise.erasers.artefact.pins import pinned_digests
    from excise.errors import ExciseError
    from excise.files import write_atomic

    suite = Probes(steps=steps, prompts=n, only=tuple(listed(probes)))
    if out is not None:
        check_file(out, (".json",), force=force)
    folders = eraser_folders(at_hand(folder))
    if len(folders) > 1:
        raise ExciseError(f"{folder} holds {len(folders)} erasers; probe one of them, such as {folders[0]}")
    (pin,) = pinned_digests(folders, digest or ())
    eraser = Eraser.load(folders[0], digest=pin)
    about = concept or eraser.concept
    total = 2 * len(batches(suite, about))
    pipe = load_pipeline(None)
    with progress(f"probing {about}", total) as advance:
        found = run(eraser, pipe, suite, about, advance)
    data = {
        "concept": about,
        "digest": eraser.digest,
        "prompts": n,
        "steps": steps,
        "probes": [row.to_json() for row in found],
    }
    if out is not None:
        write_atomic(out, dumps(data, indent=1) + "\n")
        note(f"wrote {out}")

    def show() -> None:
        rows = [
            (row.probe, _share(row.unerased), "not testable" if row.still is None else _share(row.still), row.title)
            for row in found
        ]
        table(f"{eraser.name}: prompts that still generate {about}", ("Probe", "Unerased", "Erased", ""), rows)
        prose("Per cent of prompts, with the 95 % interval. Erased: of the prompts from which the unerased model does.")
        if any(row.probe == "leakage" for row in found):
            prose("leakage: prompts from which it draws both objects in their own colours; of those, leaks of colour.")

    emit(json, data, show)


def _share(figure: Estimate) -> str:
    from excise.statistics import in_percent

    return in_percent(figure.to_json())
