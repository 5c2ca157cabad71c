"""`excise reproduce`: published tables and figures, next to your runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.command import Commands
from excise.cli.options import Device, Force, Json, Mentions, Model, PairsFile, Sae
from excise.cli.terminal import emit, note, table
from excise.cli.weights import choosing_weights
from excise.outputs import PICTURE, check_figure, check_file

if TYPE_CHECKING:
    from excise.app.bench.reproduce import Table

app = Commands(help="Show published tables and figures next to your runs.", no_args_is_help=True)

Runs = Annotated[list[Path] | None, typer.Option("--run", help="Folder of a run of `excise bench run`. Repeatable.")]


@app.command(epilog="Example: excise reproduce snce --table 1 --run run-i2p")
@choosing_weights
def snce(
    number: Annotated[int | None, typer.Option("--table", help="Table: 1, 2, 3 or 4.", **bounds.TABLE)] = None,
    figure: Annotated[int | None, typer.Option("--figure", help="Figure: 3, 7 or 8.", **bounds.FIGURE)] = None,
    runs: Runs = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File for the figure. Default: figure-N.svg, figure 7 as .png.")
    ] = None,
    concept: Annotated[
        str, typer.Option("--concept", help="For figures 3 and 8: concept to find neurons for.")
    ] = "nudity",
    mentions: Mentions = None,
    pairs: PairsFile = None,
    model: Model = None,
    sae: Sae = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    force: Force = False,
    json: Json = False,
) -> None:
    """Show a table of the SNCE paper (A Single Neuron Works) next to your runs, or plot one of its figures."""
    from excise.app.bench.reproduce import snce_table
    from excise.bench.run import Run
    from excise.errors import ExciseError

    if (number is None) == (figure is None):
        raise ExciseError("give either one table (--table 1, 2, 3 or 4) or one figure (--figure 3, 7 or 8)")
    if number is not None:
        _print(snce_table(number, [Run(folder) for folder in runs or ()]), json)
        return
    if figure not in (3, 7, 8):
        raise ExciseError(f"figure {figure} cannot be reproduced; choose 3, 7 or 8")
    path = out or Path(f"figure-{figure}.{'png' if figure == 7 else 'svg'}")
    if figure == 7:
        from excise.app.bench.reproduce import figure_7
        from excise.files import write_atomic

        if not runs or len(runs) != 1:
            raise ExciseError("figure 7 is plotted from one run that varies λ; name it with --run")
        check_file(path, PICTURE, force=force)
        write_atomic(path, figure_7(Run(runs[0])))
    else:
        from excise.app.erase.finding import draw_figure, find_neurons, settings, settings_without_site
        from excise.app.models.resolve import concept_named, load_pipeline

        check_figure(path, force=force)
        wanted = concept_named(concept, mentions, pairs, "object", 100)
        settings_without_site(model, sae)
        pipe = load_pipeline(model, device, weights)
        draw_figure(find_neurons(pipe, wanted, settings(pipe, model=model, sae=sae)), figure, path)
    emit(json, {"figure": figure, "out": str(path)}, lambda: note(f"wrote {path}"))


@app.command(epilog="Example: excise reproduce saemnesia --run run-unlearncanvas")
def saemnesia(runs: Runs = None, json: Json = False) -> None:
    """Show the UnlearnCanvas accuracies in the SAEmnesia paper, and the same columns for your runs."""
    from excise.app.bench.reproduce import saemnesia_table
    from excise.bench.run import Run

    _print(saemnesia_table([Run(folder) for folder in runs or ()]), json)


def _print(made: Table, as_json: bool) -> None:
    from dataclasses import asdict

    def show() -> None:
        table(made.title, made.columns, made.rows)
        for line in made.notes:
            note(f"as printed: {line}")

    emit(as_json, asdict(made), show)
