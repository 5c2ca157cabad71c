"""`excise pairs review`: going through pairs by single keys, by lines, or by a file."""

from __future__ import annotations

from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excise.cli.keys import Hands, hands
from excise.cli.options import Force, Json
from excise.cli.terminal import emit, note
from excise.errors import ExciseError
from excise.outputs import PAIRS, check_file

if TYPE_CHECKING:
    from excise.app.pairs.review import Review

_CHOICES = {"y": "keep", "n": "drop", "e": "edit", "u": "undo", "q": "stop and keep the place"}
_LAST = {"w": "write", "u": "undo", "q": "stop and keep the place"}


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise pairs review gun.csv --out gun-reviewed.csv")(review)


def review(
    file: Annotated[Path, typer.Argument(help="Pairs, .csv or .jsonl.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where kept pairs go. Default: beside FILE, its name and -reviewed.")
    ] = None,
    mentions: Annotated[
        str | None, typer.Option("--mentions", help="The concept's words, separated by commas: problems are shown.")
    ] = None,
    export_jsonl: Annotated[
        Path | None, typer.Option("--export-jsonl", help="Write the pairs here, with a column keep to fill in.")
    ] = None,
    apply: Annotated[
        Path | None, typer.Option("--apply", help="Read that file back, and write the pairs it keeps.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Keep, drop or edit pairs one by one; what is decided is kept when you stop."""
    if export_jsonl is not None and apply is not None:
        raise ExciseError("give either --export-jsonl or --apply: the one comes before your work, the other after it")
    if file.is_dir():
        raise ExciseError(f"{file} is a folder; name a file of pairs")
    out = out or file.with_name(f"{file.stem}-reviewed{file.suffix}")
    if export_jsonl is None:
        check_file(out, PAIRS, force=force)
    else:
        check_file(export_jsonl, (".jsonl",), force=force, option="--export-jsonl")
    from excise.app.pairs.review import Review
    from excise.concepts import Concept, check

    words = tuple(m.strip() for m in mentions.split(",")) if mentions is not None else ()
    going = Review(file)
    written = False
    if export_jsonl is not None:
        going.export(export_jsonl)
    elif apply is not None:
        going.apply(apply)
        written = True
    else:
        if going.decisions and going.current is not None:
            note(f"going on at pair {len(going.decisions) + 1} of {len(going.pairs)}")
        written = _by_hand(going, words)
    if written:
        going.finish(out)
    problems = check(Concept(words[0], words, going.kept)) if words and written else []
    data = {
        "pairs": len(going.pairs),
        "kept": len(going.kept),
        "edited": going.edited,
        "dropped": len(going.decisions) - len(going.kept),
        "left": len(going.pairs) - len(going.decisions),
        "out": str(out) if written else None,
        "exported": str(export_jsonl) if export_jsonl is not None else None,
        "problems": problems,
    }

    def show() -> None:
        for problem in problems:
            typer.echo(f"problem: {problem}")
        where = f"written to {out}" if written else f"exported to {export_jsonl}" if export_jsonl else "go on any time"
        typer.echo(f"{counts(going)}; {where}")

    emit(json, data, show)


def _by_hand(going: Review, mentions: tuple[str, ...]) -> bool:
    """Ask for every pair; whether the kept ones are to be written."""
    try:
        with hands() as answers:
            while True:
                _draw(going, mentions)
                last = going.current is None
                key = answers.choose(_LAST if last else _CHOICES)
                if key in ("q", "w", None):
                    # A list of answers that ends with the pairs has said all there is to say.
                    return key == "w" or (key is None and last)
                if key == "u":
                    if not going.undo():
                        note("there is nothing to undo")
                elif key == "e":
                    _edit(going, answers)
                else:
                    going.decide(key == "y")
    except KeyboardInterrupt:
        return False


def _edit(going: Review, answers: Hands) -> None:
    pair = going.current
    if pair is None:
        return
    concept = answers.text("concept prompt", pair.concept)
    deconcept = None if concept is None else answers.text("deconcept prompt", pair.deconcept)
    if deconcept is not None:
        going.decide(True, concept, deconcept)


def _draw(going: Review, mentions: tuple[str, ...]) -> None:
    """The next pair on standard error, where its sides differ in bold, and what is wrong with it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from excise.concepts.sifting import faults

    pair = going.current
    if pair is None:
        note(f"\n{counts(going)}; no pair is left")
        return
    note(f"\npair {len(going.decisions) + 1} of {len(going.pairs)}")
    grid = Table.grid(padding=(0, 2))
    ours, theirs = pair.concept.split(), pair.deconcept.split()
    same = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    for n, (name, words) in enumerate((("concept", ours), ("deconcept", theirs))):
        shared = {block[n] + i for block in same for i in range(block.size)}
        grid.add_row(name, Text(" ").join(Text(w, "" if i in shared else "bold") for i, w in enumerate(words)))
    for fault in faults(pair, mentions) if mentions else ():
        grid.add_row("", Text(fault, "red"))
    Console(stderr=True, highlight=False).print(grid)


def counts(going: Review) -> str:
    """How far a review has come, in words."""
    kept, left = len(going.kept), len(going.pairs) - len(going.decisions)
    return f"{kept} kept ({going.edited} edited), {len(going.decisions) - kept} dropped, {left} left"
