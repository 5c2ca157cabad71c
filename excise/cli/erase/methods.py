"""`excise methods`: the erasure methods, and their papers."""

from __future__ import annotations

from typing import Annotated

import typer

from excise.cli.command import Commands
from excise.cli.options import Json
from excise.cli.terminal import emit, prose

app = Commands(help="List the erasure methods; `excise methods cite NAME` prints BibTeX.")


@app.callback(invoke_without_command=True, epilog="Example: excise methods --json")
def listed(context: typer.Context, json: Json = False) -> None:
    """List the erasure methods: how each is fitted, what it edits, and the licence of its authors' own code."""
    from excise.app.erase.methods import describe_methods

    if context.invoked_subcommand is not None:
        return
    rows = describe_methods(defaults=json)

    def show() -> None:
        for row in rows:
            licence = "without a licence" if row["licence"] == "none" else row["licence"]
            original = f"; its authors' code: {licence}" if licence else ""
            typer.echo(f"{row['name']} ({row['kind']})")
            prose(row["does"], indent=4)
            prose(f"edits {row['edits']}{original}", indent=4)
            if row["paper"]:
                prose(row["paper"], indent=4)

    emit(json, rows, show)


@app.command(epilog="Example: excise methods cite esd-x")
def cite(name: Annotated[str, typer.Argument(help="A method's name, or several joined by +.")]) -> None:
    """Print a method's paper as BibTeX."""
    from excise.app.erase.methods import citation

    typer.echo(citation(name))
