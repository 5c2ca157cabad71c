"""`excise audit`: an independent check of an eraser by someone who did not make it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.command import NOT_PASSED
from excise.cli.cutting import note_cuts
from excise.cli.options import Device, Digests, Force, Json, Model, PairsFile, listed
from excise.cli.sources import EraserSource, at_hand
from excise.cli.terminal import emit, key_values, note, progress, prose
from excise.cli.weights import choosing_weights
from excise.outputs import PAGES, check_file, check_resumed

if TYPE_CHECKING:
    from excise.app.audit.audit import Audit


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise audit gun-eraser --out audit.html")(audit)


@choosing_weights
def audit(
    folder: EraserSource,
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML file for the report; for several erasers, a folder.")
    ] = None,
    model: Model = None,
    sae: Annotated[
        Path | None,
        typer.Option(
            "--sae",
            help="Folder of the SAE the eraser was made from. Default: the bundled ones are tried, or those trained "
            "for the model.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="Benign prompts: .txt, .csv, .jsonl or .parquet. Default: for the bundled model, its captions.",
        ),
    ] = None,
    mentions: Annotated[
        str | None,
        typer.Option("--mentions", help='Further words the eraser must catch, separated by commas: "rifle, musket".'),
    ] = None,
    pairs: PairsFile = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            help="Kind of the concept: object, style or attribute. Default: that of the known concept, else object.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", help="Benign prompts to try at most.", **bounds.COUNT)] = 2000,
    digest: Digests = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    force: Force = False,
    json: Json = False,
) -> None:
    """Audit an eraser: what its neurons fire on, which benign prompts it changes, which words it misses, and red flags.

    Prompts with the concept come from --pairs, or are made as by `excise erase`. Exit code 3 if there is a red flag.
    """
    from excise.app.audit.audit import Plan
    from excise.app.audit.inputs import benign_prompts, concept_of, saes_of, words_for
    from excise.app.audit.page import render
    from excise.app.models.resolve import kind_of, load_pipeline
    from excise.erasers import Eraser, eraser_folders
    from excise.erasers.artefact.pins import pinned_digests
    from excise.files import write_atomic

    folders = eraser_folders(at_hand(folder))
    pages = _pages(out, folders, force)
    bundled = model is None
    pins = pinned_digests(folders, digest or ())
    erasers = [Eraser.load(one, digest=pin) for one, pin in zip(folders, pins, strict=True)]
    options = {
        "--out": out, "--model": model, "--sae": sae, "--prompts": prompts, "--mentions": mentions, "--pairs": pairs,
        "--kind": kind, "--count": None if count == 2000 else count,
    }  # fmt: skip
    typed = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    typed += [part for pin in digest or () for part in ("--digest", pin)]
    given = listed(mentions)
    inputs, given_saes = [], []
    for eraser in erasers:
        words = words_for(eraser, given, bundled=bundled)
        concept = concept_of(eraser, pairs, None if kind is None else kind_of(kind))
        benign = benign_prompts(words, prompts, bundled=bundled, count=count)
        inputs.append((concept, words, benign))
        given_saes.append(None if sae is None else saes_of(eraser, sae))
    pipe = load_pipeline(model, device, weights)
    all_pairs = (pair for parts in inputs for pair in parts[0].pairs)
    sides = [side for pair in all_pairs for side in (pair.concept, pair.deconcept)]
    canaries = [text for eraser in erasers for text in eraser.canary]
    note_cuts(pipe, [*(text for parts in inputs for text in parts[2].prompts), *sides, *canaries])
    found = []
    for one, eraser, parts, own, page in zip(folders, erasers, inputs, given_saes, pages, strict=True):
        saes = saes_of(eraser, pipe=pipe, bundled=bundled) if own is None else own
        plan = Plan(eraser, pipe, *parts, saes, one, ("excise", "audit", str(folder), *typed))
        with progress(f"auditing {one.name}" if len(folders) > 1 else "auditing", plan.steps) as advance:
            audited = plan.run(advance)
        found.append(audited)
        if page is not None:
            write_atomic(page, render(audited, device))
            note(f"wrote {page}")

    def show() -> None:
        for audited in found:
            _show(audited)

    data = [audited.to_json() for audited in found]
    emit(json, data[0] if len(data) == 1 else data, show)
    if any(audited.red for audited in found):
        raise typer.Exit(NOT_PASSED)


def _pages(out: Path | None, folders: list[Path], force: bool) -> list[Path | None]:
    """Return the path of each eraser's page. Raises ExciseError if one cannot be written."""
    if out is None:
        return [None] * len(folders)
    several = len(folders) > 1
    if several:
        check_resumed(out)
    pages = [out / f"{one.name}.html" for one in folders] if several else [out]
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
    for omission in audit.left_out:
        prose(omission)
