"""`excise audit`: an eraser looked at by somebody who did not make it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excise.cli import bounds
from excise.cli.options import Device, Json, Model, PairsFile
from excise.cli.terminal import emit, key_values, note, progress

if TYPE_CHECKING:
    from excise.app.audit import Audit

RED = 3
"""The exit code where a red flag stands."""


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise audit gun-eraser --out audit.html")(audit)


def audit(
    folder: Annotated[Path, typer.Argument(help="Folder of an eraser.", metavar="DIR")],
    out: Annotated[Path | None, typer.Option("--out", help="Write the page here: one HTML file.")] = None,
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
    json: Json = False,
) -> None:
    """Audit an eraser: what its neurons fire on, which benign prompts it changes, which words it misses, and red flags.

    Exit code 3 where a red flag stands. Prompts with the concept come from --pairs or are made as `excise erase` does.
    """
    from excise.app.audit import Plan
    from excise.app.audit_inputs import benign_prompts, concept_of, kind_named, saes_of, words_for
    from excise.app.audit_page import render
    from excise.app.models import load_pipeline
    from excise.erasers import Eraser
    from excise.errors import ExciseError
    from excise.files import write_atomic

    if out is not None and out.is_dir():
        raise ExciseError(f"{out} is a folder; name a file for the page, such as {out / 'audit.html'}")
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise ExciseError(f"{out} would be a page of HTML; name it so, such as {out.with_suffix('.html')}")
    bundled = model is None
    eraser = Eraser.load(folder)
    concept = concept_of(eraser, pairs, kind_named(kind))
    given = [word.strip() for word in (mentions or "").split(",") if word.strip()]
    words = words_for(eraser, given, bundled=bundled)
    benign = benign_prompts(words, prompts, bundled=bundled, count=count)
    saes = saes_of(eraser, folder, sae, bundled=bundled)
    options = {
        "--out": out, "--model": model, "--sae": sae, "--prompts": prompts, "--mentions": mentions, "--pairs": pairs,
        "--kind": kind, "--count": None if count == 2000 else count,
    }  # fmt: skip
    typed = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    pipe = load_pipeline(model, device)
    plan = Plan(eraser, pipe, concept, words, benign, saes, folder, ("excise", "audit", str(folder), *typed))
    with progress("auditing", plan.steps) as advance:
        found = plan.run(advance)
    if out is not None:
        write_atomic(out, render(found))
        note(f"wrote {out}")
    emit(json, found.to_json(), lambda: _show(found))
    if found.red:
        raise typer.Exit(RED)


def _show(audit: Audit) -> None:
    rows = [(kind, outcome) for kind, outcome in audit.checks.items()]
    key_values(f"Audit of {audit.name}: “{audit.concept}”", rows)
    for flag in audit.flags:
        typer.echo(f"{'RED FLAG' if flag.severity == 'red' else 'note'}: {flag.kind}. {flag.says}")
        for line in flag.evidence:
            typer.echo(f"    {line}")
    for effect in audit.effects:
        missed = sum(not word.caught for word in effect.words)
        typer.echo(
            f"{effect.measured}: {effect.touched} of {effect.benign} benign prompts change, "
            f"{len(effect.words) - missed} of {len(effect.words)} words are caught"
        )
    for said in audit.left_out:
        typer.echo(said)
