"""`excise pairs make` and `excise pairs check`. `generate` and `review` have their own modules."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from excise.cli.command import Commands
from excise.cli.options import ConceptWords, Count, Force, Json, Kind, Mentions, PairsArgument
from excise.cli.pairs import generation, review
from excise.cli.terminal import echo, emit, table
from excise.outputs import PAIRS, check_file

app = Commands(help="Make, check and review pairs of prompts with and without a concept.", no_args_is_help=True)


@app.command(epilog="Example: excise pairs make gun --out gun.csv")
def make(
    concept: ConceptWords,
    out: Annotated[Path, typer.Option("--out", help="File for the pairs, .csv or .jsonl.")],
    mentions: Mentions = None,
    kind: Kind = "object",
    n: Count = 100,
    force: Force = False,
    json: Json = False,
) -> None:
    """Make balanced pairs for a concept from templates."""
    check_file(out, PAIRS, force=force)
    from excise.app.models.resolve import concept_named
    from excise.concepts import check as problems
    from excise.concepts import save_pairs

    made = concept_named(concept, mentions, None, kind, n)
    save_pairs(made.pairs, out)
    found = problems(made)
    data = {
        "concept": made.name,
        "mentions": made.mentions,
        "pairs": len(made.pairs),
        "out": str(out),
        "problems": found,
    }

    def show() -> None:
        rows = [(p.concept, p.deconcept) for p in made.pairs[:5]]
        table(f"{len(made.pairs)} pairs for “{made.name}” in {out}", ("concept", "deconcept"), rows)
        for problem in found:
            echo(f"problem: {problem}")

    emit(json, data, show)


@app.command(epilog='Example: excise pairs check gun.csv --mentions "gun"')
def check(
    file: PairsArgument,
    mentions: Annotated[str, typer.Option("--mentions", help="The concept's words, separated by commas.")],
    json: Json = False,
) -> None:
    """Check pairs for problems that would mislead the search for neurons. Exit code 1 if there are any."""
    from excise.concepts import Concept, load_pairs
    from excise.concepts import check as problems

    words = tuple(m.strip() for m in mentions.split(","))
    concept = Concept(words[0] or "concept", words, load_pairs(file))
    found = problems(concept)

    def show() -> None:
        for problem in found:
            echo(f"problem: {problem}")
        echo(f"{len(concept.pairs)} pairs, {len(found)} problem{'' if len(found) == 1 else 's'}")

    emit(json, {"pairs": len(concept.pairs), "problems": found, "first": asdict(concept.pairs[0])}, show)
    if found:
        raise typer.Exit(1)


for part in (generation, review):
    part.register(app)
