"""`excise harden`: search for words that get past an eraser, and give each an edit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excise.cli import bounds
from excise.cli.command import NOT_PASSED
from excise.cli.options import Device, Force, Json
from excise.cli.terminal import echo, emit, note, table
from excise.erasers.artefact.files import FILES
from excise.outputs import check_folder

if TYPE_CHECKING:
    from excise.app.erase.hardening import Round


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise harden car-eraser --out car-hardened")(harden)


def harden(
    folder: Annotated[Path, typer.Argument(help="Folder of an eraser by snce for the bundled model.", metavar="DIR")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the hardened eraser.")],
    gate: Annotated[
        float,
        typer.Option(
            "--gate",
            help="Share of the pictures that may show the concept; once reached, no further round is made.",
            **bounds.SHARE,
        ),
    ] = 0.05,
    rounds: Annotated[
        int, typer.Option("--rounds", help="Most erasers to try, the first one included.", **bounds.COUNT)
    ] = 4,
    words: Annotated[
        int, typer.Option("--words", help="Words to try in a round, with two pictures each.", **bounds.COUNT)
    ] = 32,
    device: Device = "cpu",
    force: Force = False,
    json: Json = False,
) -> None:
    """Harden an eraser of the bundled model: find words that get past it, and give each an edit of its own.

    Each round searches the text encoder's whole vocabulary and generates pictures from the words nearest to the
    concept. It ends at the gate, or if a round wins nothing. Words of the benchmark's prompts are left out. The best
    eraser is written, with the figures of every round. Exit code 3 if it does not reach the gate.
    """
    check_folder(out, force=force, own=FILES)
    from excise.app.erase.hardening import checked
    from excise.app.erase.hardening import harden as hardened_by
    from excise.app.models.resolve import load_pipeline
    from excise.erasers import Eraser

    eraser = Eraser.load(folder)
    checked(eraser)
    pipe = load_pipeline(None, device)

    def report(found: Round) -> None:
        leaks = ", ".join(found.leaks) or "none"
        note(f"{found.shown} of {found.pictures} pictures show “{eraser.concept}”; words: {leaks}")

    hardened = hardened_by(pipe, eraser, gate=gate, rounds=rounds, words=words, progress=report)
    hardened.eraser.save(out)
    best = hardened.rounds[hardened.best]

    def show() -> None:
        rows = [
            (str(n), f"{found.shown} of {found.pictures}", ", ".join(found.leaks), ", ".join(map(str, found.neurons)))
            for n, found in enumerate(hardened.rounds)
        ]
        table("Rounds", ("eraser", "pictures with the concept", "words that show it", "neurons"), rows)
        echo(f"{out}: eraser {hardened.best}, digest {hardened.eraser.digest[:12]}; {hardened.why}")

    data = {"out": str(out), "digest": hardened.eraser.digest, **hardened.eraser.measured["hardening"]}
    emit(json, data, show)
    if best.share > gate:
        raise typer.Exit(NOT_PASSED)
