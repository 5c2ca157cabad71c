"""`excise sae`: train on text states, inspect and measure.

Training with labels is in `supervised.py`, import and export in `exchange.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.command import Commands
from excise.cli.cutting import note_cuts
from excise.cli.options import (
    Batch,
    Bos,
    Column,
    Device,
    Engine,
    Expansion,
    Json,
    K,
    Model,
    Parallel,
    Rate,
    RetryFailed,
    SaeOut,
    SiteOption,
    Tokens,
    TrainingSeed,
    Workers,
)
from excise.cli.sae.cards import positions, show
from excise.cli.terminal import emit, note, progress
from excise.cli.weights import choosing_weights
from excise.outputs import check_untrained

app = Commands(help="Train, import, export, compare and measure sparse autoencoders (SAEs).", no_args_is_help=True)


@app.command(epilog="Example: excise sae train --prompts prompts.txt --site encoder.layers.5 --out sae")
@choosing_weights
def train(
    out: SaeOut,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="Training prompts: .txt, .csv, .jsonl or .parquet.")
    ] = None,
    column: Column = "prompt",
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Published corpus to train on instead: reference or snce-sd14.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="Tokenised corpus to train on instead, from `excise sae corpus`.")
    ] = None,
    diffusiondb: Annotated[
        Path | None,
        typer.Option("--diffusiondb", help="snce-sd14: DiffusionDB's metadata.parquet. Default: from the hub."),
    ] = None,
    i2p: Annotated[Path | None, typer.Option("--i2p", help="snce-sd14: I2P's csv file. Default: from the hub.")] = None,
    exclude_eval: Annotated[
        bool, typer.Option("--exclude-eval", help="snce-sd14: leave out I2P, which is also the test set.")
    ] = False,
    model: Model = None,
    site: SiteOption = None,
    tokens: Tokens = None,
    expansion: Expansion = None,
    k: K = None,
    lr: Rate = None,
    batch: Batch = None,
    decay: Annotated[
        float | None,
        typer.Option(
            "--decay", help="Share of the steps, at the end, over which the learning rate falls to 0.", **bounds.SHARE
        ),
    ] = None,
    shortlist: Annotated[
        int | None,
        typer.Option(
            "--shortlist",
            help="Preselect neurons in bfloat16, with this many to spare (such as 8). Default: 0, off.",
            **bounds.SHORTLIST,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="float32, or bfloat16 if the processor multiplies that faster."),
    ] = None,
    padding: Annotated[
        float,
        typer.Option("--padding", help="Share of the prompts whose padding is trained on too.", **bounds.SHARE),
    ] = 1.0,
    bos: Bos = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Train on the states as they are, not scaled to unit variance.")
    ] = False,
    seed: TrainingSeed = 0,
    parallel: Parallel = None,
    states: Annotated[
        str | None,
        typer.Option(
            "--states",
            help="Keep the states on disk (stored), or compute them whenever needed (made; with --corpus). Default: in "
            "memory if they take less than 2 GiB; else made by a GPU from a corpus, otherwise stored.",
        ),
    ] = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    workers: Workers = 1,
    engine: Engine = None,
    retry_failed: RetryFailed = False,
    json: Json = False,
) -> None:
    """Train a TopK SAE on a text encoder's states. Repeat the command to resume it.

    With --workers or --engine, the prompts are read by several processes, and their states are stored. With --parallel,
    --engine ray starts the processes that train.

    Without --site, the SAE is trained three quarters of the way up the encoder. A pipeline with several text encoders
    gets one SAE per encoder.

    Defaults are the SNCE paper's: --tokens 10000000, --expansion 4, --k 32, --lr 0.0004, --batch 4096, --decay 0.
    The public code that the paper builds on trains on states as they are: --raw.
    --recipe reference has its own; with it and --bos the bundled SAE was trained.
    """
    from excise import sae as library
    from excise.app.erase.finding import chosen
    from excise.app.models.loader import Loader
    from excise.app.models.resolve import load_pipeline, parse_site
    from excise.app.reading.corpus import Corpus, load_corpus
    from excise.app.reading.reading import Reading
    from excise.app.reading.vectors import help_with, parts_of
    from excise.app.training import ranks
    from excise.app.training.cluster import train_on_cluster
    from excise.app.training.text import places_of, recipe_config, recipe_prompts, shown, train_sae
    from excise.concepts import read_prompts
    from excise.engine import is_first
    from excise.errors import ExciseError
    from excise.launched import local_device
    from excise.sae.storage import is_sae
    from excise.sae.trainer import check_ranks
    from excise.sites import PRESETS

    if not is_first(engine, workers) and is_sae(out):
        note("the first slice has trained it already")
        return
    check_untrained(out, option="--out", parts=True)
    if [prompts, recipe, corpus].count(None) != 2:
        raise ExciseError("give one of --prompts FILE, --recipe NAME and --corpus FOLDER")
    if states == "made" and corpus is None:
        raise ExciseError("--states made needs --corpus: tokenise the prompts with `excise sae corpus`")
    if exclude_eval and recipe != "snce-sd14":
        raise ExciseError("--exclude-eval only applies to --recipe snce-sd14; leave it out")
    if recipe == "snce-sd14" and model is None:
        raise ExciseError("--recipe snce-sd14 needs --model: the folder or hub name of Stable Diffusion 1.4")
    asked: dict[str, Any] = {"expansion": expansion, "k": k, "lr": lr, "batch": batch, "tokens": tokens, "decay": decay}
    asked |= {"shortlist": shortlist, "precision": precision, "units": "raw" if raw else None}
    config = replace(recipe_config(recipe), seed=seed, **chosen(asked))
    on_ray = ranks.on_ray(parallel, engine)
    load = Loader(model, device, weights)
    reading = Reading(None if on_ray else engine, workers, load, retry_failed, states)  # type: ignore[arg-type]
    card: dict[str, Any] = {"model": model or "bundled"}
    texts: list[str] | Corpus
    if recipe is not None:
        texts, description = recipe_prompts(recipe, diffusiondb=diffusiondb, i2p=i2p, exclude_eval=exclude_eval)
        card |= description
    elif corpus is not None:
        texts = load_corpus(corpus)
        card["corpus"] = f"{texts.source}: {len(texts)} prompts"
    else:
        assert prompts is not None
        texts = list(read_prompts(prompts, column))
        card["corpus"] = f"{prompts.name}: {len(texts)} prompts"
    device = "cpu" if on_ray else local_device(device)  # Ray's ranks have devices of their own
    mesh = ranks.join(parallel, engine)
    reading.check(mesh)
    pipe = load_pipeline(model, device, weights)
    bundled = PRESETS["reference"][0] if model is None else None
    places = places_of(pipe, out, bundled if site is None else parse_site(pipe, site))
    for place in places.values():  # refuse ranks and a corpus before the first of several SAEs is trained
        check_ranks(config, mesh, width=place.width)
        parts_of(pipe, [place], texts, padding, bos)
    how: dict[str, Any] = {"padding": padding, "bos": bos, "reading": reading}
    if not reading.is_first:
        for folder, place in places.items():
            with progress(f"reading the prompts for {folder.name}", len(texts)) as advance:
                help_with(pipe, place, texts, folder, captured=advance, **how)
        note("the first slice trains")
        return
    how |= {"card": card, "mesh": mesh}
    if mesh.rank:  # rank 0 reports for all
        for folder, place in places.items():
            train_sae(pipe, place, texts, config, folder, device=device, **how)
        mesh.leave()
        return
    note_cuts(pipe, texts.sample if isinstance(texts, Corpus) else texts)

    def restarted() -> None:
        note("a process was lost; all were started again, and continue from the last checkpoint")

    for folder, place in places.items():
        note(f"training at {place.key}")
        with shown(progress, len(texts), config.tokens) as (captured, line):
            if on_ray:
                train_on_cluster(
                    load, place, texts, config, folder, engine=engine or "", captured=captured, progress=line,
                    restarted=restarted, **how,
                )  # fmt: skip
            else:
                train_sae(pipe, place, texts, config, folder, captured=captured, progress=line, device=device, **how)
        note(f"saved in {folder}")
    mesh.leave()
    show({folder: library.card(folder) for folder in places}, json)


@app.command(epilog="Example: excise sae info sae")
def info(
    folder: Annotated[Path, typer.Argument(help="Folder of an SAE.")],
    json: Json = False,
) -> None:
    """Show what an SAE was trained on and how well it reconstructs."""
    from excise import sae as library

    folders = list(library.saes_in(folder).values()) or [folder]
    for one in folders:
        library.load(one)
    show({one: library.card(one) for one in folders}, json)


@app.command(epilog="Example: excise sae measure sae --model $MODEL --prompts prompts.txt --save")
@choosing_weights
def measure(
    folder: Annotated[Path, typer.Argument(help="Folder of an SAE of a text encoder.")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="Prompts: .txt, .csv, .jsonl or .parquet. Default: for the bundled model, 256 of its captions.",
        ),
    ] = None,
    column: Column = "prompt",
    model: Model = None,
    site: SiteOption = None,
    save: Annotated[bool, typer.Option("--save", help="Write the figures into the SAE's card.")] = False,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    json: Json = False,
) -> None:
    """Measure how well an SAE reconstructs words, end of text, padding and the first state (BOS), separately."""
    from excise import sae as library
    from excise.app.models.resolve import load_pipeline, parse_site, sae_site
    from excise.app.training.figures import by_position, default_prompts
    from excise.concepts import read_prompts
    from excise.errors import ExciseError

    if prompts is None and model is not None:
        raise ExciseError("--model needs --prompts FILE: the prompts to measure the SAE on")
    sae = library.load(folder)
    texts = default_prompts() if prompts is None else list(read_prompts(prompts, column))
    pipe = load_pipeline(model, device, weights)
    place = sae_site(pipe, folder) if site is None else parse_site(pipe, site)
    found = by_position(pipe, place, sae.to(device), texts)
    measured = {"positions": found, "positions_on": f"{len(texts)} {'captions' if prompts is None else 'prompts'}"}
    metrics = {**(library.card(folder)["metrics"] or {}), **measured}
    if save:
        library.update_card(folder, {"metrics": metrics})
        note(f"saved in {folder}")
    emit(json, {"folder": str(folder), **measured}, lambda: positions(folder, found))
