"""`excise reproduce`: published tables with your runs beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from excise.cli.options import Json
from excise.cli.terminal import emit, note, table

app = typer.Typer(help="Published tables, with your runs beside them.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    pass


@app.command(epilog="Example: excise reproduce snce --table 1 --run run-i2p")
def snce(
    number: Annotated[int, typer.Option("--table", help="1, 2, 3 or 4.")],
    runs: Annotated[
        list[Path] | None, typer.Option("--run", help="Folder of a run of `excise bench run`; give it several times.")
    ] = None,
    json: Json = False,
) -> None:
    """A table of A Single Neuron Works, as printed, and the same rows for your runs."""
    from dataclasses import asdict

    from excise.app.reproduce import snce_table
    from excise.bench.run import Run

    made = snce_table(number, [Run(folder) for folder in runs or ()])

    def show() -> None:
        table(made.title, made.columns, made.rows)
        for line in made.notes:
            note(f"as printed: {line}")

    emit(json, asdict(made), show)
