"""`excise sae compare` and `excise sae sweep`: find the SAE that separates concepts best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.cutting import note_cuts
from excise.cli.options import Column, Count, Device, Engine, Json, Model, RetryFailed, Workers
from excise.cli.sae.supervised import app
from excise.cli.terminal import aligned, echo, emit, note, progress, prose, table
from excise.cli.weights import choosing_weights
from excise.outputs import check_resumed

__all__ = ["app"]

Concepts = Annotated[
    str,
    typer.Option(
        "--concepts",
        help="Known concepts, separated by commas; a .txt file with one per line (`weapon: halberd, mace` also gives "
        "its words); or a .csv or .jsonl file of pairs with columns name, concept, deconcept.",
    ),
]
By = Annotated[str, typer.Option("--by", help="Column to rank by; an unknown name lists them all.")]
Share = Annotated[
    float,
    typer.Option(
        "--t", help="L0,t counts neurons that detect a concept in at least this share of its pairs.", **bounds.SHARE
    ),
]
Threshold = Annotated[
    float, typer.Option("--threshold", help="Largest code that does not count as firing.", **bounds.CODE)
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
"""Figures that fit a terminal. --json has the others too."""
NAMED = {name: key for key, name in COLUMNS.items()}
"""Figures by the names of their columns."""
LEGEND = (
    "Means over the concepts. I_CDF: number of neurons that detect a concept, each weighted by how often it does. "
    "L0,t: number that do so in at least a share t of the pairs. probe: accuracy of a probe on one neuron. TPP: how "
    "much more accuracy the concept's own probe loses than others' do when its top neuron is ablated. AUROC: of the "
    "top neuron, held out. carried: share of the concept's change in a sentence that this neuron writes. --json has "
    "more figures, and those of each concept."
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
    """Rank SAEs by how well their neurons separate concepts. Needs neither pictures nor a language model."""
    from excise.app.models.resolve import load_pipeline, sae_folder
    from excise.app.training.comparing import Comparing, concepts_of
    from excise.app.training.comparing import compare as compared
    from excise.errors import ExciseError
    from excise.sae import card

    by = NAMED.get(by, by)
    config = Comparing(t=t, threshold=threshold, by=by)
    wanted = concepts_of(concepts, n)
    if model is not None and not saes:
        raise ExciseError("--model needs folders of SAEs of its text encoder: excise sae compare SAE ...")
    folders = saes or [sae_folder(None, None)]
    for folder in folders:
        card(folder)  # fail early: check them all before the model is loaded
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
    out: Annotated[Path, typer.Option("--out", help="Folder for the SAEs, with one folder each.")],
    sites: Annotated[
        str | None, typer.Option("--sites", help="Sites, separated by commas. Default: every layer's output.")
    ] = None,
    expansions: Annotated[
        str, typer.Option("--expansions", help="Neurons per input dimension, separated by commas.")
    ] = "4,8",
    k: Annotated[str, typer.Option("--k", help="Neurons kept per vector, separated by commas.")] = "8,32",
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="Training prompts. Default: for the bundled model, its captions."),
    ] = None,
    column: Column = "prompt",
    tokens: Annotated[
        int, typer.Option("--tokens", help="Vectors to train each SAE on.", **bounds.TRAINING_VECTORS)
    ] = 1_000_000,
    most: Annotated[int, typer.Option("--most", help="Prompts to read at most.", **bounds.CORPUS)] = 4000,
    concepts: Concepts = "gun,knife,cat,rocket,ink",
    by: By = "i_cdf",
    t: Share = 0.5,
    threshold: Threshold = 0.0,
    n: Count = 100,
    model: Model = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    workers: Workers = 1,
    engine: Engine = None,
    retry_failed: RetryFailed = False,
    json: Json = False,
) -> None:
    """Train a grid of SAEs on the same prompts, which are encoded once, and rank them. Repeat the command to resume."""
    check_resumed(out)
    from dataclasses import replace
    from itertools import islice

    from excise import reference
    from excise.app.erase.sweeping import swept_sites
    from excise.app.models.loader import Loader
    from excise.app.models.resolve import load_pipeline, parse_site
    from excise.app.training.comparing import Comparing, concepts_of
    from excise.app.training.grid_sweep import Cell, grid
    from excise.app.training.grid_sweep import sweep as swept
    from excise.app.training.text import recipe_config
    from excise.concepts import read_prompts
    from excise.engine import check_engine
    from excise.errors import ExciseError
    from excise.sae import Progress

    check_engine(engine, workers)
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
    with progress("encoding prompts", len(texts)) as read, progress("training SAEs", len(cells)) as advance:

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
            loader=Loader(model, device, weights),
            engine=engine,
            workers=workers,
            retry=retry_failed,
        )
    if not rows:
        note("another slice could not train all of its SAEs, so they are not compared; its own error line says why")
    data = {"by": by, "concepts": [concept.name for concept in wanted], "saes": rows}
    emit(json, data, lambda: show(rows, by) if rows else None)


def show(rows: list[dict[str, Any]], by: str) -> None:
    """Print SAEs as a table, best first, with a legend."""
    titles = ["", *(f"{title}↓" if name == by else title for name, title in COLUMNS.items())]
    figures = zip(*(aligned([row[name] for row in rows]) for name in COLUMNS), strict=True)
    cells = [[str(n), *row] for n, row in enumerate(figures, 1)]
    table(f"SAEs by {COLUMNS.get(by, by)}", titles, cells)
    for n, row in enumerate(rows, 1):
        echo(f"{n:3}  {row['sae']}: {row['site']}, {row['m']} neurons, k {row['k']}")
    echo()
    prose(LEGEND)


def _numbers(option: str, text: str, allowed: bounds.Bounds) -> list[int]:
    """Parse whole numbers separated by commas. Raises ExciseError if one is out of bounds."""
    from excise.errors import ExciseError

    parts = [part.strip() for part in text.split(",")]
    low, high = int(allowed["min"]), int(allowed["max"])
    if not all(part.isdecimal() and low <= int(part) <= high for part in parts):
        raise ExciseError(
            f"{option} cannot be {text!r}; give whole numbers from {low} to {high}, separated by commas, such as 4,8"
        )
    return [int(part) for part in parts]
