"""Training of SAEs on a text encoder: corpora, features at a Site, training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excise.app.reading.corpus import Corpus
from excise.app.reading.reading import HERE, Reading
from excise.app.reading.vectors import Prompts, no_prompts, shards_folder, vectors
from excise.app.training.diffusiondb import NSFW, above, from_hub
from excise.app.training.figures import by_position
from excise.concepts import read_prompts
from excise.erasers.hooks.context import unedited
from excise.errors import NotFound
from excise.outputs import check_untrained
from excise.pipeline import Pipeline
from excise.sae import Progress, TopKSAE, TrainConfig, train
from excise.sae.data import Features
from excise.sae.parallel import ALONE, Mesh
from excise.sae.trainer import check_ranks
from excise.sites import Site, default_site, final_state_cosine, to_cover

FIDELITY_PROMPTS = 256
"""Prompts of the corpus, evenly spread, on which the SAE's reconstruction is measured."""
RECIPES = ("reference", "snce-sd14")
SNCE_PROMPTS = 30_000
BUNDLED = TrainConfig(expansion=8, k=8, lr=2e-3, batch=2048, tokens=3_000_000, decay=0.2)
"""Training settings of the bundled SAE. There, the paper's k = 32 splits an object over three or four neurons, while 8
does not: docs/decisions/0020-wide-sparse-sae.md."""


def recipe_config(recipe: str | None) -> TrainConfig:
    """Return a recipe's training settings, or the paper's for other corpora."""
    return BUNDLED if recipe == "reference" else TrainConfig()


def recipe_prompts(
    recipe: str, *, diffusiondb: Path | None = None, i2p: Path | None = None, exclude_eval: bool = False
) -> tuple[list[str], dict[str, Any]]:
    """Return a recipe's prompts, and entries for the SAE's card that describe them.

    "reference" is the corpus of the bundled SAE. "snce-sd14" is the paper's: I2P, filled up to 30,000 prompts with
    a random sample, always the same, of those of DiffusionDB above `NSFW`. The paper does not say which ones it took.

    Args:
        recipe: "reference" or "snce-sd14".
        diffusiondb: DiffusionDB's metadata.parquet; by default downloaded from the hub.
        i2p: I2P's CSV file; by default downloaded from the hub.
        exclude_eval: Whether to leave out I2P, which is also the test set.

    Raises:
        ExciseError: The recipe is unknown, or a file cannot be read.
    """
    if recipe == "reference":
        from excise import reference

        prompts = list(reference.sae_corpus())
        return prompts, {
            "corpus": f"reference: {len(prompts)} captions and English sentences",
            "excludes": ["synonyms"],
        }
    if recipe != "snce-sd14":
        raise NotFound(f"unknown recipe {recipe!r}; known are {', '.join(RECIPES)}")
    held_out = list(dict.fromkeys(read_prompts(i2p or from_hub("i2p"))))
    known = set(held_out)
    unsafe = [p for p in dict.fromkeys(above(diffusiondb or from_hub("diffusiondb"))) if p not in known]
    start = [] if exclude_eval else held_out
    # Neighbouring rows of the metadata are one user's variations of a prompt.
    sample = random.Random(0).sample(unsafe, min(len(unsafe), max(0, SNCE_PROMPTS - len(start))))
    prompts = [*start, *sample]
    corpus = f"snce-sd14: {len(prompts)} prompts, a sample of DiffusionDB with prompt_nsfw > {NSFW}"
    return prompts, {
        "corpus": corpus if exclude_eval else f"{corpus}, and all {len(held_out)} of I2P (a test set)",
        "excludes": ["i2p"] if exclude_eval else [],
    }


def places_of(pipe: Pipeline, out: Path, site: Site | None = None) -> dict[Path, Site]:
    """Return the folder and Site of each SAE to train into `out`.

    With `site` there is one. Otherwise there is one for each text encoder through which a concept can reach the
    denoiser; several are in folders named after their encoders.

    Raises:
        ExciseError: An encoder has no stack of layers.
    """
    if site is not None:
        return {out: site}
    sites = [default_site(pipe, component) for component in to_cover(pipe)]
    return {out: sites[0]} if len(sites) == 1 else {out / site.component: site for site in sites}


def train_sae(
    pipe: Pipeline,
    site: Site,
    prompts: Prompts,
    config: TrainConfig,
    out: Path,
    *,
    card: dict[str, Any],
    captured: Callable[[int], Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
    device: str = "cpu",
    padding: float = 1.0,
    bos: bool = False,
    mesh: Mesh = ALONE,
    reading: Reading = HERE,
) -> TopKSAE:
    """Capture `prompts` at `site` and train an SAE into `out`. The same call resumes after an interruption.

    Args:
        pipe: The pipeline.
        site: The Site.
        prompts: The corpus: texts, or tokens.
        config: Settings of the training.
        out: Folder of the SAE.
        card: Entries for the SAE's card.
        captured: Called with the prompts read since its last call.
        progress: Called with the lines of the training's log.
        device: Device to train on.
        padding: Share of the prompts whose padding states are trained on. Most states are padding.
        bos: Whether to train on the first state too. A causal encoder gives the same one for every prompt, and erasers
            do not edit it. It holds more than a third of the variance, so it would dominate which neurons count as dead
            and how `lr` acts.
        mesh: Ranks that train the SAE together, as in `excise.sae.train`.
        reading: Where the prompts are read, and whether their states are stored.

    Raises:
        ExciseError: As `excise.sae.train` and `excise.sites.activations.capture`.
        ItemsFailed: Reading failed for a reason that no user can fix.
    """
    if not prompts:
        raise no_prompts()
    check_ranks(config, mesh, width=site.width)
    mesh.together(lambda: check_untrained(out))
    entries = card if padding == 1 else {**card, "padding": padding}
    with vectors(pipe, [site], prompts, shards_folder(out), captured, padding, bos, mesh, reading) as read:
        return train_on(
            pipe, site, prompts, read[site], config, out, card=entries, progress=progress, device=device, bos=bos,
            mesh=mesh,
        )  # fmt: skip


def train_on(
    pipe: Pipeline,
    site: Site,
    prompts: Prompts,
    features: Features,
    config: TrainConfig,
    out: Path,
    *,
    card: Mapping[str, Any],
    progress: Callable[[Progress], None] | None = None,
    device: str = "cpu",
    bos: bool = False,
    mesh: Mesh = ALONE,
) -> TopKSAE:
    """Train an SAE into `out` on the features that `vectors` read from `prompts` at `site`.

    Raises:
        ExciseError: As `excise.sae.train`.
    """

    @unedited()
    def fidelity(sae: TopKSAE) -> dict[str, Any]:
        texts = prompts.sample if isinstance(prompts, Corpus) else prompts
        few = texts[:: -(-len(texts) // FIDELITY_PROMPTS)]
        positions = by_position(pipe, site, sae, few)

        def stands_in(x: Tensor) -> Tensor:
            made = sae(x.to(sae.W_enc))[0]
            # Keep BOS unless the SAE was trained on it: erasers keep it as well.
            return made if bos or "bos" not in positions else torch.cat([x[:, :1].to(made), made[:, 1:]], 1)

        return {"positions": positions, "final_state_cosine": final_state_cosine(pipe, site, stands_in, few)}

    entries = {**card, "site": asdict(site), "prompts": len(prompts), "bos": bos}
    return train(features, config, out, card=entries, progress=progress, measure=fidelity, device=device, mesh=mesh)


@contextmanager
def shown(
    working: Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]], prompts: int, tokens: int
) -> Iterator[tuple[Callable[[int], None], Callable[[Progress], None]]]:
    """Yield `captured` and `progress` for `train_sae`, shown as two consecutive bars by `working(title, total)`."""
    with ExitStack() as stack:
        advance: Callable[[int], None] | None = None
        read = stack.enter_context(working("reading the prompts", prompts))
        seen = 0

        def line(now: Progress) -> None:
            nonlocal advance, seen
            if advance is None:
                stack.close()
                advance = stack.enter_context(working("training the SAE", tokens))
            advance(now.tokens - seen)
            seen = now.tokens

        yield read, line
