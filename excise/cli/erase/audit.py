"""`excise audit`: an eraser looked at by somebody who did not make it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.command import NOT_PASSED
from excise.cli.cutting import note_cuts
from excise.cli.options import Device, Force, Json, Model, PairsFile
from excise.cli.terminal import emit, key_values, note, progress, prose
from excise.cli.weights import choosing_weights
from excise.outputs import PAGES, check_file, check_resumed

if TYPE_CHECKING:
    from excise.app.audit.audit import Audit


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise audit gun-eraser --out audit.html")(audit)


@choosing_weights
def audit(
    folder: Annotated[Path, typer.Argument(help="Folder of an eraser, or of several.", metavar="DIR")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the page here: an HTML file; of several erasers, a folder.")
    ] = None,
    model: Model = None,
    sae: Annotated[
        Path | None,
        typer.Option(
            "--sae", help="Folder of the SAE it was made from. Default: where the eraser says, if it is there."
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="Benign prompts (.txt, .csv, .jsonl, .parquet). Default, for the bundled model: bundled captions.",
        ),
    ] = None,
    mentions: Annotated[
        str | None, typer.Option("--mentions", help='More words it has to catch, separated by commas: "rifle, musket".')
    ] = None,
    pairs: PairsFile = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind", help="What the concept is: object, style or attribute. Default: as built in, else object."
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", help="Benign prompts at most.", **bounds.COUNT)] = 2000,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    force: Force = False,
    json: Json = False,
) -> None:
    """Audit an eraser: what its neurons fire on, which benign prompts it changes, which words it misses, and red flags.

    Exit code 3 where a red flag stands. Prompts with the concept come from --pairs or are made as `excise erase` does.
    """
    from excise.app.audit.audit import Plan
    from excise.app.audit.inputs import benign_prompts, concept_of, kind_named, saes_of, words_for
    from excise.app.audit.page import render
    from excise.app.models.resolve import load_pipeline
    from excise.erasers import Eraser, eraser_folders
    from excise.files import write_atomic

    folders = eraser_folders(folder)
    pages = _pages(out, folders, force)
    bundled = model is None
    erasers = [Eraser.load(own) for own in folders]
    options = {
        "--out": out, "--model": model, "--sae": sae, "--prompts": prompts, "--mentions": mentions, "--pairs": pairs,
        "--kind": kind, "--count": None if count == 2000 else count,
    }  # fmt: skip
    typed = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    given = [word.strip() for word in (mentions or "").split(",") if word.strip()]
    inputs = []
    for own, eraser in zip(folders, erasers, strict=True):
        words = words_for(eraser, given, bundled=bundled)
        concept = concept_of(eraser, pairs, kind_named(kind))
        benign = benign_prompts(words, prompts, bundled=bundled, count=count)
        saes = saes_of(eraser, own, sae, bundled=bundled)
        inputs.append((concept, words, benign, saes))
    pipe = load_pipeline(model, device, weights)
    pairs_of = (pair for given_to in inputs for pair in given_to[0].pairs)
    sides = [side for pair in pairs_of for side in (pair.concept, pair.deconcept)]
    canaries = [text for eraser in erasers for text in eraser.canary]
    note_cuts(pipe, [*(text for given_to in inputs for text in given_to[2].prompts), *sides, *canaries])
    found = []
    for own, eraser, given_to, page in zip(folders, erasers, inputs, pages, strict=True):
        plan = Plan(eraser, pipe, *given_to, own, ("excise", "audit", str(folder), *typed))
        with progress(f"auditing {own.name}" if len(folders) > 1 else "auditing", plan.steps) as advance:
            audited = plan.run(advance)
        found.append(audited)
        if page is not None:
            write_atomic(page, render(audited, device))
            note(f"wrote {page}")

    def show() -> None:
        for audited in found:
            _show(audited)

    told = [audited.to_json() for audited in found]
    emit(json, told[0] if len(told) == 1 else told, show)
    if any(audited.red for audited in found):
        raise typer.Exit(NOT_PASSED)


def _pages(out: Path | None, folders: list[Path], force: bool) -> list[Path | None]:
    """Where each eraser's page goes. Raises ExciseError where one cannot be there."""
    if out is None:
        return [None] * len(folders)
    several = len(folders) > 1
    if several:
        check_resumed(out)
    pages = [out / f"{own.name}.html" for own in folders] if several else [out]
    for page in pages:
        check_file(page, PAGES, force=force)
    return [*pages]


def _show(audit: Audit) -> None:
    rows = [(kind, outcome) for kind, outcome in audit.checks.items()]
    key_values(f"Audit of {audit.name}: “{audit.concept}”", rows)
    for flag in audit.flags:
        prose(f"{'RED FLAG' if flag.severity == 'red' else 'note'}: {flag.kind}. {flag.says}")
        for line in flag.evidence:
            prose(line, indent=4, hanging=4)
    for effect in audit.effects:
        missed = sum(not word.caught for word in effect.words)
        prose(
            f"{effect.measured}: {effect.touched} of {effect.benign} benign prompts change, "
            f"{len(effect.words) - missed} of {len(effect.words)} words are caught"
        )
    for said in audit.left_out:
        prose(said)
