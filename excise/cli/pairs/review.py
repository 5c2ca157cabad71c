"""`excise pairs review`: go through pairs by single keys, by lines, or by a file."""

from __future__ import annotations

from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excise.cli.keys import Answers, typed_answers
from excise.cli.options import Force, Json, PairsArgument
from excise.cli.terminal import echo, emit, note
from excise.errors import ExciseError, printable
from excise.outputs import PAIRS, check_file

if TYPE_CHECKING:
    from excise.app.pairs.review import Review

_CHOICES = {"y": "keep", "n": "drop", "e": "edit", "u": "undo", "q": "stop and save progress"}
_LAST = {"w": "write", "u": "undo", "q": "stop and save progress"}


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise pairs review gun.csv --out gun-reviewed.csv")(review)


def review(
    file: PairsArgument,
    out: Annotated[
        Path | None, typer.Option("--out", help="File for the kept pairs. Default: FILE's name with -reviewed added.")
    ] = None,
    mentions: Annotated[
        str | None,
        typer.Option("--mentions", help="The concept's words, separated by commas; problems are then shown."),
    ] = None,
    export_jsonl: Annotated[
        Path | None, typer.Option("--export-jsonl", help="File to export the pairs to, with a column keep to fill in.")
    ] = None,
    apply: Annotated[
        Path | None, typer.Option("--apply", help="The exported file, filled in: write the pairs it keeps.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Keep, drop or edit pairs one by one. Your decisions are saved when you stop."""
    if export_jsonl is not None and apply is not None:
        raise ExciseError("give either --export-jsonl or --apply: export first, fill the file in, then apply it")
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
    state = Review(file)
    written = False
    if export_jsonl is not None:
        state.export(export_jsonl)
    elif apply is not None:
        state.apply(apply)
        written = True
    else:
        if state.decisions and state.current is not None:
            note(f"resuming at pair {len(state.decisions) + 1} of {len(state.pairs)}")
        written = _by_hand(state, words)
    if written:
        state.finish(out)
    problems = check(Concept(words[0], words, state.kept)) if words and written else []
    data = {
        "pairs": len(state.pairs),
        "kept": len(state.kept),
        "edited": state.edited,
        "dropped": len(state.decisions) - len(state.kept),
        "left": len(state.pairs) - len(state.decisions),
        "out": str(out) if written else None,
        "exported": str(export_jsonl) if export_jsonl is not None else None,
        "problems": problems,
    }

    def show() -> None:
        for problem in problems:
            echo(f"problem: {problem}")
        unwritten = f"exported to {export_jsonl}" if export_jsonl else "repeat the command to continue"
        echo(f"{counts(state)}; {f'written to {out}' if written else unwritten}")

    emit(json, data, show)


def _by_hand(state: Review, mentions: tuple[str, ...]) -> bool:
    """Ask about every pair. Returns whether to write the kept ones."""
    try:
        with typed_answers() as answers:
            while True:
                _show_next(state, mentions)
                last = state.current is None
                key = answers.choose(_LAST if last else _CHOICES)
                if key in ("q", "w", None):
                    # Piped input that ends exactly with the pairs is complete.
                    return key == "w" or (key is None and last)
                if key == "u":
                    if not state.undo():
                        note("there is nothing to undo")
                elif key == "e":
                    _edit(state, answers)
                else:
                    state.decide(key == "y")
    except KeyboardInterrupt:
        return False


def _edit(state: Review, answers: Answers) -> None:
    pair = state.current
    if pair is None:
        return
    concept = answers.text("concept prompt", pair.concept)
    deconcept = None if concept is None else answers.text("deconcept prompt", pair.deconcept)
    if deconcept is not None:
        state.decide(True, concept, deconcept)


def _show_next(state: Review, mentions: tuple[str, ...]) -> None:
    """Print the next pair and its problems on standard error, with the words that differ in bold."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from excise.concepts.sifting import faults

    pair = state.current
    if pair is None:
        note(f"\n{counts(state)}; no pair is left")
        return
    note(f"\npair {len(state.decisions) + 1} of {len(state.pairs)}")
    grid = Table.grid(padding=(0, 2))
    ours, theirs = pair.concept.split(), pair.deconcept.split()
    same = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    for n, (name, words) in enumerate((("concept", ours), ("deconcept", theirs))):
        shared = {block[n] + i for block in same for i in range(block.size)}
        grid.add_row(
            name, Text(" ").join(Text(printable(w), "" if i in shared else "bold") for i, w in enumerate(words))
        )
    for fault in faults(pair, mentions) if mentions else ():
        grid.add_row("", Text(printable(fault), "red"))
    Console(stderr=True, highlight=False).print(grid)


def counts(state: Review) -> str:
    """Describe the progress of a review."""
    kept, left = len(state.kept), len(state.pairs) - len(state.decisions)
    return f"{kept} kept ({state.edited} edited), {len(state.decisions) - kept} dropped, {left} left"
