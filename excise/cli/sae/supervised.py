"""`excise sae train-block` and `excise sae train-text`: SAEs that give every label a neuron of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.cutting import note_cuts
from excise.cli.options import Device, Json, Model, SiteOption
from excise.cli.sae.sae import app, show
from excise.cli.terminal import note, progress
from excise.cli.weights import choosing_weights
from excise.outputs import check_untrained

__all__ = ["app"]

Out = Annotated[Path, typer.Option("--out", help="Folder to make for the SAE.")]
Prompts = Annotated[
    Path | None, typer.Option("--prompts", help="Prompts with their labels: .csv or .jsonl (without labels also .txt).")
]
Column = Annotated[str, typer.Option("--column", help="Column of the prompts.")]
Label = Annotated[
    list[str] | None,
    typer.Option("--label", help="Column of what a prompt shows, semicolons between several. Once for each group."),
]
Recipe = Annotated[
    str | None,
    typer.Option("--recipe", help="reference instead of a file: the bundled model's captions, by object and style."),
]
Start = Annotated[Path | None, typer.Option("--start", help="SAE to fine-tune. Default: from scratch.")]
Negatives = Annotated[
    str,
    typer.Option(
        "--negatives",
        help="What is asked of labels that a prompt lacks: none (the paper's formula), silence (assigned), or silence "
        "that weighs as much as all labels it has (balanced).",
    ),
]
Beta = Annotated[float, typer.Option("--beta", help="Weight of the supervised terms.", **bounds.WEIGHT)]
Tokens = Annotated[
    int | None, typer.Option("--tokens", help="Vectors to train on, repeats counted.", **bounds.TRAINING_VECTORS)
]
Expansion = Annotated[
    int | None, typer.Option("--expansion", help="Neurons for each input dimension.", **bounds.EXPANSION)
]
K = Annotated[int | None, typer.Option("--k", help="Neurons kept for each vector.", **bounds.K)]
Rate = Annotated[float | None, typer.Option("--lr", help="Adam's learning rate.", **bounds.RATE)]
Batch = Annotated[int | None, typer.Option("--batch", help="Vectors in a step.", **bounds.BATCH)]
Activation = Annotated[str | None, typer.Option("--activation", help="In training: topk or batchtopk.")]
Seed = Annotated[int, typer.Option("--seed", help="Of initialisation and order.", **bounds.TRAINING_SEED)]


@app.command(
    epilog="Example: excise sae train-block --prompts captions.csv --label object --label style "
    "--model sd15 --block up_blocks.1.attentions.1 --guidance 9 --out sae",
)
@choosing_weights
def train_block(
    out: Out,
    prompts: Prompts = None,
    column: Column = "prompt",
    label: Label = None,
    recipe: Recipe = None,
    start: Start = None,
    negatives: Negatives = "none",
    beta: Beta = 3.0,
    unsupervised: Annotated[
        bool, typer.Option("--unsupervised", help="Keep the labels with the features, but train without them.")
    ] = False,
    features: Annotated[
        Path | None, typer.Option("--features", help="Folder to keep the block's features in, for another training.")
    ] = None,
    block: Annotated[
        str | None, typer.Option("--block", help="Such as up_blocks.1.attentions.1. The bundled model has a default.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Denoising steps of every picture.", **bounds.STEPS)] = 20,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="Guidance scale. Default: the pipeline's own.", **bounds.GUIDANCE)
    ] = None,
    model: Model = None,
    tokens: Tokens = None,
    expansion: Expansion = None,
    k: K = None,
    lr: Rate = None,
    batch: Batch = None,
    activation: Activation = None,
    seed: Seed = 0,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    json: Json = False,
) -> None:
    """Train an SAE on a block of the denoiser: with --label a neuron for every label (SAEmnesia), else SAEuron's.

    Prompts are drawn, and what the block gives at every step is learnt from. The same call goes on where an
    interrupted one stopped.
    """
    from excise import reference
    from excise import sae as library
    from excise.app.erase.finding import chosen
    from excise.app.models.resolve import load_pipeline
    from excise.app.training.labelled import BLOCK, CAPTIONS, labels_of, train_block_sae
    from excise.app.training.text import shown
    from excise.errors import ExciseError
    from excise.sites import BLOCKS, block_site

    check_untrained(out, option="--out")
    if block is None and model is not None:
        raise ExciseError("--model needs --block: a block of its denoiser, such as up_blocks.1.attentions.1")
    asked = {"expansion": expansion, "k": k, "lr": lr, "batch": batch, "tokens": tokens, "activation": activation}
    told: dict[str, Any] = {"negatives": negatives, "beta": beta, "start": str(start or "")}
    rows, how = labels_of(prompts, column, label, recipe, CAPTIONS, **told, unsupervised=unsupervised)
    config = replace(BLOCK, seed=seed, **chosen(asked))
    pipe = load_pipeline(model, device, weights)
    note_cuts(pipe, (row.prompt for row in rows))
    site = block_site(pipe, block or BLOCKS["reference"][0].path)
    scale = reference.GUIDANCE if guidance is None and model is None else guidance
    drawn: dict[str, Any] = {"steps": steps, "options": {} if scale is None else {"guidance_scale": scale}}
    note(f"training at {site.key}")
    with shown(progress, len(rows), config.tokens) as (read, line):
        train_block_sae(
            pipe, site, rows, config, out, how, **drawn, features=features, captured=read, progress=line, device=device
        )
    note(f"saved in {out}")
    show({out: library.card(out)}, json)


@app.command(epilog="Example: excise sae train-text --prompts captions.csv --label object --out sae")
@choosing_weights
def train_text(
    out: Out,
    prompts: Prompts = None,
    column: Column = "prompt",
    label: Label = None,
    recipe: Recipe = None,
    start: Start = None,
    negatives: Negatives = "none",
    beta: Beta = 3.0,
    model: Model = None,
    site: SiteOption = None,
    tokens: Tokens = None,
    expansion: Expansion = None,
    k: K = None,
    lr: Rate = None,
    batch: Batch = None,
    activation: Activation = None,
    bos: Annotated[
        bool,
        typer.Option("--bos", help="Train on the first state too, which every prompt shares and no eraser edits."),
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    json: Json = False,
) -> None:
    """Train an SAE on a text encoder's states with a neuron for every label, for the method saemnesia-text."""
    from excise import sae as library
    from excise.app.erase.finding import chosen
    from excise.app.models.resolve import load_pipeline, parse_site
    from excise.app.training.labelled import TEXT_CAPTIONS, english, labels_of
    from excise.app.training.supervised import train_on_text
    from excise.app.training.text import BUNDLED, shown
    from excise.errors import ExciseError
    from excise.sites import PRESETS, default_site

    check_untrained(out, option="--out")
    if not label:
        raise ExciseError("name a column of labels with --label; `excise sae train` needs none")
    asked = {"expansion": expansion, "k": k, "lr": lr, "batch": batch, "tokens": tokens, "activation": activation}
    told: dict[str, Any] = {"negatives": negatives, "beta": beta, "start": str(start or "")}
    rows, how = labels_of(prompts, column, label, recipe, TEXT_CAPTIONS, **told)
    config = replace(BUNDLED, seed=seed, **chosen(asked))
    pipe = load_pipeline(model, device, weights)
    note_cuts(pipe, (row.prompt for row in rows))
    bundled = PRESETS["reference"][0] if model is None else None
    place = parse_site(pipe, site) if site is not None else bundled or default_site(pipe, "text_encoder")
    note(f"training at {place.key}")
    others = english() if recipe is not None else []
    if recipe is not None and not others:
        note("training on the captions alone: WordNet's English, which goes with them, is not installed (wordnet-base)")
    with shown(progress, len(rows) + len(others), config.tokens) as (_, line):
        train_on_text(
            pipe, place, rows, how.concepts, out, config, how, others=others, bos=bos, progress=line, device=device
        )
    note(f"saved in {out}")
    show({out: library.card(out)}, json)
