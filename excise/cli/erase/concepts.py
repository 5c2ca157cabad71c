"""`excise concepts`: the concepts that Excise knows by name."""

from __future__ import annotations

import typer

from excise.cli.options import Json
from excise.cli.terminal import emit, table


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise concepts --json")(concepts)


def concepts(json: Json = False) -> None:
    """List the known concepts, the models each is for, and its words."""
    from excise.concepts import names
    from excise.concepts.library import described

    rows = [described(name) for name in names()]

    def show() -> None:
        cells = [(row["name"], row["kind"], row["for"], ", ".join(row["mentions"])) for row in rows]
        table(f"{len(rows)} concepts", ("concept", "kind", "for", "mentions"), cells)

    emit(json, rows, show)
