"""`excise sae compare` and `excise sae sweep`: which SAE tells concepts apart best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.cutting import note_cuts
from excise.cli.options import Count, Device, Json, Model
from excise.cli.sae.supervised import app
from excise.cli.terminal import aligned, emit, note, progress, prose, table
from excise.cli.weights import choosing_weights
from excise.outputs import check_resumed

__all__ = ["app"]

Concepts = Annotated[
    str,
    typer.Option(
        "--concepts",
        help="Names with commas between them; a .txt file with one a line (`weapon: halberd, mace` gives its words); "
        "or pairs in a .csv or .jsonl file with the columns name, concept, deconcept.",
    ),
]
By = Annotated[str, typer.Option("--by", help="What is ranked by, a column's name; a wrong one lists them.")]
Share = Annotated[
    float,
    typer.Option(
        "--t", help="L0,t counts neurons that tell a concept apart in this share of its pairs.", **bounds.SHARE
    ),
]
Threshold = Annotated[
    float, typer.Option("--threshold", help="A code up to this does not count as firing.", **bounds.CODE)
]
COLUMNS = {
    "i_cdf": "I_CDF",
    "l0_t": "L0,t",
    "probing_1": "probe",
    "tpp": "TPP",
    "auroc": "AUROC",
    "carried": "carried",
    "fvu": "FVU",
    "dead": "dead",
}
"""What fits a terminal of the figures; the others are in the json."""
NAMED = {name: key for key, name in COLUMNS.items()}
"""Figures by the names of their columns."""
LEGEND = (
    "Means over the concepts. I_CDF: neurons that tell a concept apart, each by how often; L0,t: those that do so in "
    "a share t of the pairs. probe: accuracy on one neuron. TPP: what taking the top neuron out costs its concept's "
    "probe more than others'. AUROC: of the top neuron, held out. carried: how much of what the concept changes in a "
    "sentence that neuron writes. --json has more, concept by concept."
)


@app.command(epilog="Example: excise sae compare my-sae other-sae --concepts gun,knife,cat")
@choosing_weights
def compare(
    saes: Annotated[list[Path] | None, typer.Argument(help="Folders of SAEs. Default: the bundled one.")] = None,
    concepts: Concepts = "gun,knife,cat,rocket,ink",
    by: By = "i_cdf",
    t: Share = 0.5,
    threshold: Threshold = 0.0,
    n: Count = 100,
    model: Model = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    json: Json = False,
) -> None:
    """Rank SAEs by how well their neurons tell concepts apart. Needs neither pictures nor a language model."""
    from excise.app.models.resolve import load_pipeline, sae_folder
    from excise.app.training.comparing import Comparing, concepts_of
    from excise.app.training.comparing import compare as compared
    from excise.errors import ExciseError
    from excise.sae import card

    by = NAMED.get(by, by)
    config = Comparing(t=t, threshold=threshold, by=by)
    wanted = concepts_of(concepts, n)
    if model is not None and not saes:
        raise ExciseError("--model needs the folders of SAEs of that model's text encoder: excise sae compare SAE ...")
    folders = saes or [sae_folder(None, None)]
    for folder in folders:
        card(folder)  # before the model is loaded and the first is measured
    pipe = load_pipeline(model, device, weights)
    note_cuts(pipe, (side for one in wanted for pair in one.pairs for side in (pair.concept, pair.deconcept)))
    with progress("comparing SAEs", len(folders)) as advance:
        rows = compared(pipe, folders, wanted, config, advance)
    emit(json, {"by": by, "concepts": [concept.name for concept in wanted], "saes": rows}, lambda: show(rows, by))


@app.command(
    epilog="Example: excise sae sweep --sites encoder.layers.3,encoder.layers.5 --k 8,32 --concepts gun,cat --out sweep"
)
@choosing_weights
def sweep(
    out: Annotated[Path, typer.Option("--out", help="Folder for the SAEs, one folder each.")],
    sites: Annotated[
        str | None, typer.Option("--sites", help="Sites with commas between them. Default: every layer's output.")
    ] = None,
    expansions: Annotated[str, typer.Option("--expansions", help="Neurons for each input dimension.")] = "4,8",
    k: Annotated[str, typer.Option("--k", help="Neurons kept for each vector.")] = "8,32",
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="Training prompts. Default, for the bundled model: its captions.")
    ] = None,
    column: Annotated[str, typer.Option("--column", help="Column of the prompts in such a file.")] = "prompt",
    tokens: Annotated[
        int, typer.Option("--tokens", help="Vectors each SAE trains on.", **bounds.TRAINING_VECTORS)
    ] = 1_000_000,
    most: Annotated[int, typer.Option("--most", help="Prompts read at most.", **bounds.CORPUS)] = 4000,
    concepts: Concepts = "gun,knife,cat,rocket,ink",
    by: By = "i_cdf",
    t: Share = 0.5,
    threshold: Threshold = 0.0,
    n: Count = 100,
    model: Model = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    json: Json = False,
) -> None:
    """Train a grid of SAEs on one reading of the prompts, and rank them. The same call goes on where it stopped."""
    check_resumed(out)
    from dataclasses import replace
    from itertools import islice

    from excise import reference
    from excise.app.erase.finding import swept_sites
    from excise.app.models.resolve import load_pipeline, parse_site
    from excise.app.training.comparing import Comparing, concepts_of
    from excise.app.training.grid_sweep import Cell, grid
    from excise.app.training.grid_sweep import sweep as swept
    from excise.app.training.text import recipe_config
    from excise.concepts import read_prompts
    from excise.errors import ExciseError
    from excise.sae import Progress

    by = NAMED.get(by, by)
    config = Comparing(t=t, threshold=threshold, by=by)
    wanted = concepts_of(concepts, n)
    widths, kept = _numbers("--expansions", expansions, bounds.EXPANSION), _numbers("--k", k, bounds.K)
    if prompts is not None:
        texts, corpus = list(islice(read_prompts(prompts, column), most)), prompts.name
    elif model is None:
        texts, corpus = list(reference.sae_corpus(captions=most, english=0)), "captions"
    else:
        raise ExciseError("a sweep on another model needs --prompts FILE to train its SAEs on")
    pipe = load_pipeline(model, device, weights)
    note_cuts(pipe, texts)
    places = [parse_site(pipe, text.strip()) for text in sites.split(",")] if sites else swept_sites(pipe)
    cells = grid(places, widths, kept)
    training = replace(recipe_config("reference" if model is None else None), tokens=tokens)
    with progress("reading the prompts", len(texts)) as read, progress("training SAEs", len(cells)) as advance:

        def trained(cell: Cell, line: Progress | None) -> None:
            if line is None:
                advance(1)
                note(f"trained {cell.name}")

        rows = swept(
            pipe,
            cells,
            texts,
            wanted,
            training,
            out,
            card_of={"model": model or "bundled", "corpus": f"{corpus}: {len(texts)} prompts, for a sweep"},
            comparing=config,
            captured=read,
            trained=trained,
            device=device,
        )
    emit(json, {"by": by, "concepts": [concept.name for concept in wanted], "saes": rows}, lambda: show(rows, by))


def show(rows: list[dict[str, Any]], by: str) -> None:
    """Print SAEs as a table, best first, and what its columns mean."""
    titles = ["", *(f"{title}↓" if name == by else title for name, title in COLUMNS.items())]
    figures = zip(*(aligned([row[name] for row in rows]) for name in COLUMNS), strict=True)
    cells = [[str(n), *row] for n, row in enumerate(figures, 1)]
    table(f"SAEs by {COLUMNS.get(by, by)}", titles, cells)
    for n, row in enumerate(rows, 1):
        typer.echo(f"{n:3}  {row['sae']}: {row['site']}, {row['m']} neurons, k {row['k']}")
    typer.echo()
    prose(LEGEND)


def _numbers(option: str, text: str, allowed: bounds.Bounds) -> list[int]:
    """Whole numbers with commas between them."""
    from excise.errors import ExciseError

    parts = [part.strip() for part in text.split(",")]
    low, high = int(allowed["min"]), int(allowed["max"])
    if not all(part.isdecimal() and low <= int(part) <= high for part in parts):
        raise ExciseError(
            f"{option} cannot be {text!r}; it is whole numbers from {low} to {high} with commas between them: 4,8"
        )
    return [int(part) for part in parts]
