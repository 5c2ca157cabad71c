"""`excise concepts`: the concepts that come with Excise."""

from __future__ import annotations

import typer

from excise.cli.options import Json
from excise.cli.terminal import emit, table


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise concepts --json")(concepts)


def concepts(json: Json = False) -> None:
    """List the concepts that are known by name, what each is for, and the words it stands for."""
    from excise.concepts import names
    from excise.concepts.library import described

    rows = [described(name) for name in names()]

    def show() -> None:
        cells = [(row["name"], row["kind"], row["for"], ", ".join(row["mentions"])) for row in rows]
        table(f"{len(rows)} concepts", ("concept", "kind", "for", "mentions"), cells)

    emit(json, rows, show)
