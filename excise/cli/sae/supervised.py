"""`excise sae train-block` and `excise sae train-text`: SAEs with one neuron per label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.cutting import note_cuts
from excise.cli.options import (
    Batch,
    Bos,
    Column,
    Device,
    Expansion,
    Guidance,
    Json,
    K,
    Model,
    Parallel,
    Rate,
    SaeOut,
    SiteOption,
    Steps,
    Tokens,
    TrainingSeed,
)
from excise.cli.sae.cards import show
from excise.cli.sae.exchange import app
from excise.cli.terminal import note, progress
from excise.cli.weights import choosing_weights
from excise.outputs import check_untrained

__all__ = ["app"]

Prompts = Annotated[
    Path | None, typer.Option("--prompts", help="Prompts with labels: .csv or .jsonl (without labels, also .txt).")
]
Label = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        help="Column with a prompt's labels, separated by semicolons. Repeatable: one column per group of labels.",
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option("--recipe", help="reference: use the bundled model's captions, labelled by object and style."),
]
Start = Annotated[Path | None, typer.Option("--start", help="SAE to fine-tune. Default: train from scratch.")]
Preset = Annotated[
    str,
    typer.Option(
        "--preset",
        help="Loss on the labels: saemnesia, or g-sae (binary cross-entropy in each vector, no other term). Other "
        "options take precedence.",
    ),
]
Negatives = Annotated[
    str | None,
    typer.Option(
        "--negatives",
        help="Loss on neurons of labels that a prompt lacks: none (SAEmnesia's formula), assigned (they should be "
        "silent), or balanced (the same, weighing as much as all the labels it has). Default: the preset's, none or "
        "assigned.",
    ),
]
Beta = Annotated[
    float | None,
    typer.Option(
        "--beta",
        help="Weight of the supervised terms. Default: the preset's, 3 or the number of labels.",
        **bounds.WEIGHT,
    ),
]
Activation = Annotated[str | None, typer.Option("--activation", help="Activation in training: topk or batchtopk.")]


@app.command(
    epilog="Example: excise sae train-block --prompts captions.csv --label object --label style "
    "--model sd15 --block up_blocks.1.attentions.1 --guidance 9 --out sae",
)
@choosing_weights
def train_block(
    out: SaeOut,
    prompts: Prompts = None,
    column: Column = "prompt",
    label: Label = None,
    recipe: Recipe = None,
    start: Start = None,
    preset: Preset = "saemnesia",
    negatives: Negatives = None,
    beta: Beta = None,
    unsupervised: Annotated[
        bool, typer.Option("--unsupervised", help="Store the labels with the features, but train without them.")
    ] = False,
    features: Annotated[
        Path | None, typer.Option("--features", help="Folder to keep the block's features in, to train on them again.")
    ] = None,
    block: Annotated[
        str | None,
        typer.Option("--block", help="Block of the denoiser, such as up_blocks.1.attentions.1. Required with --model."),
    ] = None,
    steps: Steps = 20,
    guidance: Guidance = None,
    model: Model = None,
    tokens: Tokens = None,
    expansion: Expansion = None,
    k: K = None,
    lr: Rate = None,
    batch: Batch = None,
    activation: Activation = None,
    seed: TrainingSeed = 0,
    parallel: Parallel = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    json: Json = False,
) -> None:
    """Train an SAE on a block of the denoiser: SAEmnesia's with --label (one neuron per label), else SAEuron's.

    Pictures are generated for the prompts, and the SAE is trained on the block's output at every step. Repeat the
    command to resume it.

    Defaults: --tokens 6000000, --expansion 8, --k 16, --lr 0.002, --batch 2048.
    """
    from excise import reference
    from excise import sae as library
    from excise.app.erase.finding import chosen
    from excise.app.models.resolve import load_pipeline
    from excise.app.training import ranks
    from excise.app.training.labelled import BLOCK, CAPTIONS, labels_of, train_block_sae
    from excise.app.training.text import shown
    from excise.errors import ExciseError
    from excise.launched import local_device
    from excise.sites import BLOCKS, block_site

    check_untrained(out, option="--out")
    if block is None and model is not None:
        raise ExciseError("--model needs --block, a block of its denoiser, such as up_blocks.1.attentions.1")
    asked = {"expansion": expansion, "k": k, "lr": lr, "batch": batch, "tokens": tokens, "activation": activation}
    supervision: dict[str, Any] = {"preset": preset, "negatives": negatives, "beta": beta, "start": str(start or "")}
    rows, how = labels_of(prompts, column, label, recipe, CAPTIONS, **supervision, unsupervised=unsupervised)
    config = replace(BLOCK, seed=seed, **chosen(asked))
    device = local_device(device)
    mesh = ranks.join(parallel)
    pipe = load_pipeline(model, device, weights)
    site = block_site(pipe, block or BLOCKS["reference"][0].path)
    scale = reference.GUIDANCE if guidance is None and model is None else guidance
    sampling: dict[str, Any] = {"steps": steps, "options": {} if scale is None else {"guidance_scale": scale}}
    sampling |= {"features": features, "device": device, "mesh": mesh}
    if mesh.rank:  # rank 0 reports for all
        train_block_sae(pipe, site, rows, config, out, how, **sampling)
        mesh.leave()
        return
    note_cuts(pipe, (row.prompt for row in rows))
    note(f"training at {site.key}")
    with shown(progress, len(rows), config.tokens) as (read, line):
        train_block_sae(pipe, site, rows, config, out, how, **sampling, captured=read, progress=line)
    mesh.leave()
    note(f"saved in {out}")
    show({out: library.card(out)}, json)


@app.command(epilog="Example: excise sae train-text --prompts captions.csv --label object --out sae")
@choosing_weights
def train_text(
    out: SaeOut,
    prompts: Prompts = None,
    column: Column = "prompt",
    label: Label = None,
    recipe: Recipe = None,
    start: Start = None,
    preset: Preset = "saemnesia",
    negatives: Negatives = None,
    beta: Beta = None,
    model: Model = None,
    site: SiteOption = None,
    tokens: Tokens = None,
    expansion: Expansion = None,
    k: K = None,
    lr: Rate = None,
    batch: Batch = None,
    activation: Activation = None,
    bos: Bos = False,
    seed: TrainingSeed = 0,
    parallel: Parallel = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    json: Json = False,
) -> None:
    """Train an SAE on a text encoder's states with one neuron per label, for the method saemnesia-text.

    Defaults: --tokens 3000000, --expansion 8, --k 8, --lr 0.002, --batch 2048.
    """
    from excise import sae as library
    from excise.app.erase.finding import chosen
    from excise.app.models.resolve import load_pipeline, parse_site
    from excise.app.training import ranks
    from excise.app.training.labelled import TEXT_CAPTIONS, english, labels_of
    from excise.app.training.supervised import train_on_text
    from excise.app.training.text import BUNDLED, shown
    from excise.errors import ExciseError
    from excise.launched import local_device
    from excise.sites import PRESETS, default_site

    check_untrained(out, option="--out")
    if not label:
        raise ExciseError("name a column of labels with --label; `excise sae train` trains without labels")
    asked = {"expansion": expansion, "k": k, "lr": lr, "batch": batch, "tokens": tokens, "activation": activation}
    supervision: dict[str, Any] = {"preset": preset, "negatives": negatives, "beta": beta, "start": str(start or "")}
    rows, how = labels_of(prompts, column, label, recipe, TEXT_CAPTIONS, **supervision)
    config = replace(BUNDLED, seed=seed, **chosen(asked))
    device = local_device(device)
    mesh = ranks.join(parallel)
    pipe = load_pipeline(model, device, weights)
    bundled = PRESETS["reference"][0] if model is None else None
    place = parse_site(pipe, site) if site is not None else bundled or default_site(pipe, "text_encoder")
    others = english() if recipe is not None else []
    training: dict[str, Any] = {"others": others, "bos": bos, "device": device, "mesh": mesh}
    if mesh.rank:  # rank 0 reports for all
        train_on_text(pipe, place, rows, how.concepts, out, config, how, **training)
        mesh.leave()
        return
    note_cuts(pipe, (row.prompt for row in rows))
    note(f"training at {place.key}")
    if recipe is not None and not others:
        note("training on the captions alone: WordNet's English sentences need Debian's wordnet-base, not installed")
    with shown(progress, len(rows) + len(others), config.tokens) as (_, line):
        train_on_text(pipe, place, rows, how.concepts, out, config, how, **training, progress=line)
    mesh.leave()
    note(f"saved in {out}")
    show({out: library.card(out)}, json)
