"""`excise find`: find the neurons that carry a concept."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.cutting import note_cuts
from excise.cli.options import (
    ConceptName,
    Count,
    Device,
    Force,
    Json,
    Kind,
    Mentions,
    Model,
    PairsFile,
    Sae,
    SiteOption,
    Top,
    snce_option,
)
from excise.cli.terminal import aligned, emit, note, progress, table
from excise.cli.weights import choosing_weights
from excise.outputs import check_figure


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise find gun --top 5 --plot gun.svg")(find)


@choosing_weights
def find(
    concept: ConceptName,
    mentions: Mentions = None,
    pairs: PairsFile = None,
    kind: Kind = "object",
    n: Count = 100,
    model: Model = None,
    sae: Sae = None,
    site: SiteOption = None,
    top: Top = 10,
    tolerance: Annotated[float | None, snce_option("tolerance")] = None,
    score: Annotated[str, snce_option("score")] = "snce",
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            help="File for a bar chart of the --top neurons: .svg, .png or .pdf. NAME-activations, next to it, shows "
            "all activations.",
        ),
    ] = None,
    sweep_sites: Annotated[
        bool, typer.Option("--sweep-sites", help="Train a small SAE at every site and compare the sites (minutes).")
    ] = False,
    sweep_tokens: Annotated[
        int,
        typer.Option("--sweep-tokens", help="Vectors to train each SAE of the sweep on.", **bounds.TRAINING_VECTORS),
    ] = 1_000_000,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="Prompts to train the sweep's SAEs on. Default: the bundled model's captions."),
    ] = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    force: Force = False,
    json: Json = False,
) -> None:
    """Rank the neurons that fire with a concept and not without it.

    Settings that are not given take the defaults of the method snce; `excise methods show snce` lists them.
    """
    if plot is not None:
        check_figure(plot, force=force, option="--plot")
        check_figure(plot.with_name(f"{plot.stem}-activations{plot.suffix}"), force=force, option="--plot")
    from excise.app.erase.finding import chosen, draw, find_neurons, settings, settings_without_site
    from excise.app.erase.sweeping import SWEEP_PROMPTS, sweep, swept_sites
    from excise.app.models.resolve import concept_named, load_pipeline
    from excise.concepts import read_prompts
    from excise.errors import ExciseError

    wanted = concept_named(concept, mentions, pairs, kind, n)
    if not sweep_sites:
        settings_without_site(model, sae, score=score, **chosen({"tolerance": tolerance}))
    elif model is not None and prompts is None:
        raise ExciseError("--sweep-sites on another model needs --prompts FILE to train its SAEs on")
    pipe = load_pipeline(model, device, weights)
    note_cuts(pipe, (side for pair in wanted.pairs for side in (pair.concept, pair.deconcept)))
    if sweep_sites:
        if prompts is not None:
            texts = list(islice(read_prompts(prompts), SWEEP_PROMPTS))
        else:
            from excise import reference

            texts = list(reference.sae_corpus(captions=SWEEP_PROMPTS, english=0))
        with progress("sweeping sites", len(swept_sites(pipe))) as advance:
            rows = sweep(pipe, wanted, texts, tokens=sweep_tokens, device=device, progress=advance)
        emit(json, {"concept": wanted.name, "sites": rows}, lambda: _show_sweep(wanted.name, rows))
        return
    config = settings(pipe, model=model, sae=sae, site=site, score=score, **chosen({"tolerance": tolerance}))
    found = find_neurons(pipe, wanted, config, top)
    if plot is not None:
        for path in draw(found, plot):
            note(f"wrote {path}")
    for warning in found.warnings:
        note(f"warning: {warning}")
    data = {"concept": wanted.name, "site": found.found.site.key, "neurons": found.rows, "warnings": found.warnings}
    emit(json, data, lambda: show_ranking(wanted.name, found.found.site.key, found.rows))


def show_ranking(name: str, site: str, rows: list[dict[str, Any]]) -> None:
    """Print neurons as a table."""
    columns = ("neuron", "score", "frequency", "AUROC", "p", "on controls", "top tokens", "")
    scores = aligned([r["score"] for r in rows])
    cells = [
        (
            str(r["neuron"]),
            score,
            str(r["frequency"]),
            number(r["auroc"]),
            number(r["p_value"]),
            number(r["control_share"]),
            " ".join(r["top_tokens"][:5]),
            "structural" if r["structural"] else "",
        )
        for r, score in zip(rows, scores, strict=True)
    ]
    shown = len(columns) if any(r["structural"] for r in rows) else len(columns) - 1
    table(f"Neurons for “{name}” at {site}", columns[:shown], [row[:shown] for row in cells])


def _show_sweep(name: str, rows: list[dict[str, Any]]) -> None:
    columns = ("site", "neuron", "score", "first / second", "AUROC", "on controls", "FVU")
    cells = [
        (
            str(r["site"]),
            "-" if r["neuron"] is None else str(r["neuron"]),
            score,
            ahead,
            number(r["auroc"]),
            number(r["control_share"]),
            number(r["fvu"]),
        )
        for r, score, ahead in zip(rows, *(aligned([r[n] for r in rows]) for n in ("score", "dominance")), strict=True)
    ]
    table(f"Sites for “{name}”: the best neuron at each", columns, cells)


def number(value: float | None, form: str = "3f") -> str:
    """Format a figure for a table cell; None becomes a dash."""
    return "-" if value is None else f"{value:.{form}}"
