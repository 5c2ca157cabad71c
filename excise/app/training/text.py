"""From prompts to an SAE: the corpus, its features at a Site, the training."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excise.app.training.figures import by_position
from excise.concepts import read_prompts
from excise.errors import ExciseError, MissingExtra, NotFound
from excise.outputs import check_untrained
from excise.pipeline import Pipeline
from excise.sae import Progress, TopKSAE, TrainConfig, train
from excise.sae.data import Features
from excise.sites import LanguageModel, Site, capture, capture_by_length, default_site, final_state_cosine, to_cover
from excise.sites.activations.token_shards import capture_tokens_to

IN_MEMORY = 2 << 30
"""Bytes of features kept in memory; more go to shards beside the SAE's folder."""
POSITIONS, TYPICAL = 77, 24
"""Of a prompt with its padding, and of one without it."""
FIDELITY_PROMPTS = 256
"""Prompts of the corpus, evenly spread, on which the SAE stands in for the text encoder's own features."""
RECIPES = ("reference", "snce-sd14")
SNCE_PROMPTS = 30_000
NSFW = 0.5
"""SNCE's corpus takes DiffusionDB's prompts whose `prompt_nsfw` lies above this."""
BUNDLED = TrainConfig(expansion=8, k=8, lr=2e-3, batch=2048, tokens=3_000_000, decay=0.2)
"""How the bundled SAE is trained. The paper's k = 32 splits an object over three or four neurons there, and 8 does not:
docs/decisions/0020-wide-sparse-sae.md."""
HUB = {
    "diffusiondb": ("poloclub/diffusiondb", "metadata.parquet"),
    "i2p": ("AIML-TUDA/i2p", "i2p_benchmark.csv"),
}


def recipe_config(recipe: str | None) -> TrainConfig:
    """The settings that go with a recipe; the paper's for every other corpus."""
    return BUNDLED if recipe == "reference" else TrainConfig()


def recipe_prompts(
    recipe: str, *, diffusiondb: Path | None = None, i2p: Path | None = None, exclude_eval: bool = False
) -> tuple[list[str], dict[str, Any]]:
    """A recipe's prompts, and what the SAE's card says of them.

    "reference" is the corpus of the bundled SAE. "snce-sd14" is the paper's: I2P, filled up to 30,000 with
    DiffusionDB's prompts above `NSFW`; with `exclude_eval` without I2P, which is also the test set. Files that are not
    named come from the hub. Raises ExciseError for an unknown recipe or files that cannot be read.
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
    held_out = list(dict.fromkeys(read_prompts(i2p or _from_hub("i2p"))))
    unsafe = _above(diffusiondb or _from_hub("diffusiondb"))
    own = set(held_out)
    start = [] if exclude_eval else held_out
    prompts = [*start, *islice((p for p in dict.fromkeys(unsafe) if p not in own), SNCE_PROMPTS - len(start))]
    corpus = f"snce-sd14: {len(prompts)} prompts, DiffusionDB with prompt_nsfw > {NSFW}"
    return prompts, {
        "corpus": corpus if exclude_eval else f"{corpus}, and all {len(held_out)} of I2P (a test set)",
        "excludes": ["i2p"] if exclude_eval else [],
    }


def _above(path: Path) -> Iterator[str]:
    """Prompts of DiffusionDB's metadata whose `prompt_nsfw` is above `NSFW` (2 marks images, not prompts: left out)."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtra("reading DiffusionDB's metadata needs pyarrow: pip install 'excise[parquet]'") from error
    wanted = ["prompt", "prompt_nsfw"]
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [w for w in wanted if w not in names]:
                raise ExciseError(f"{path} has no column '{missing[0]}'; the columns found are {', '.join(names)}")
            for batch in file.iter_batches(columns=wanted):
                for prompt, unsafe in zip(*(batch.column(c).to_pylist() for c in wanted), strict=True):
                    if prompt and prompt.strip() and unsafe is not None and NSFW < unsafe <= 1:
                        yield prompt.strip()
    except (OSError, ArrowException) as error:
        raise ExciseError(f"cannot read {path}: {error}; is it DiffusionDB's metadata.parquet?") from error


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    repo, file = HUB[name]
    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset"))
    except Exception as error:
        raise ExciseError(
            f"cannot fetch {file} of {repo} from the hub; download it and name it with --{name}"
        ) from error


def no_prompts() -> ExciseError:
    """What is raised where there is nothing to train on."""
    return ExciseError("there are no prompts to train on; check the prompts file")


def features(
    pipe: Pipeline,
    sites: Sequence[Site],
    prompts: Iterable[str],
    progress: Callable[[int], Any] | None = None,
    padding: float = 1.0,
    bos: bool = False,
) -> dict[Site, Tensor]:
    """States of every prompt at `sites` of one text encoder, `[N, width]` float32: words, EOS and, of a share of the
    prompts, padding; with `bos` the first state too, where no word stands there; of a language model the words' alone.
    """
    rows: dict[Site, list[Tensor]] = {site: [] for site in sites}
    by_length = (batch.features for batch in capture_by_length(pipe, sites, prompts, padding=padding))
    for batch in capture(pipe, sites, prompts) if padding == 1 else by_length:
        for site in batch.states:
            rows[site].append((batch if bos else batch.without_bos()).vectors(site).float().cpu())
        if progress is not None:
            progress(len(batch.ids))
    if not all(rows.values()):
        raise no_prompts()
    return {site: torch.cat(own) for site, own in rows.items()}


@contextmanager
def vectors(
    pipe: Pipeline,
    sites: Sequence[Site],
    prompts: Sequence[str],
    beside: Path,
    progress: Callable[[int], Any] | None = None,
    padding: float = 1.0,
    bos: bool = False,
) -> Iterator[dict[Site, Features]]:
    """What SAEs at several Sites of one text encoder train on, read in one pass over the prompts.

    In memory where there is room (`IN_MEMORY`), else from shards in the folder `beside`, which stays until what is done
    within is done: an interrupted reading goes on, and what was read is not read again. A language model's go there
    always.
    """
    read = TYPICAL + padding * (POSITIONS - TYPICAL)
    fits = len(prompts) * read * sum(site.width for site in sites) * 4 <= IN_MEMORY
    language = isinstance(pipe, LanguageModel)
    if fits and not language:
        yield dict(features(pipe, sites, prompts, progress, padding, bos))
        return
    # A language model took hours over what is there: it is not deleted because other texts were named this time.
    how: dict[str, Any] = {"padding": padding, "bos": bos, "overwrite": not language}
    shards = capture_tokens_to(beside, pipe, sites, prompts, **how, progress=progress)
    yield {site: partial(shards.vectors_at, site) for site in sites}
    shutil.rmtree(beside, ignore_errors=True)


def places_of(pipe: Pipeline, out: Path, site: Site | None = None) -> dict[Path, Site]:
    """The folder of every SAE that `out` is to hold, and its Site: one at `site`, else one for each text encoder by
    which a concept can reach the denoiser, in a folder of its name where there are several.

    Raises ExciseError where an encoder has no stack of layers.
    """
    if site is not None:
        return {out: site}
    sites = [default_site(pipe, component) for component in to_cover(pipe)]
    return {out: sites[0]} if len(sites) == 1 else {out / site.component: site for site in sites}


def train_sae(
    pipe: Pipeline,
    site: Site,
    prompts: list[str],
    config: TrainConfig,
    out: Path,
    *,
    card: dict[str, Any],
    captured: Callable[[int], Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
    device: str = "cpu",
    padding: float = 1.0,
    bos: bool = False,
) -> TopKSAE:
    """Capture `prompts` at `site` and train an SAE into `out`. Calling again after an interruption goes on.

    Of a share of `padding` of the prompts the padding states, which are most of all, are trained on too, and with `bos`
    the first state, which a causal encoder gives alike for every prompt and no eraser edits: without it neither what
    counts as dead nor what `lr` means is set by that one vector, a third and more of the variance. `captured` is called
    with the prompts read since the last call, `progress` with the lines of the training's log.

    Raises ExciseError as `excise.sae.train` and `excise.sites.activations.capture` do.
    """
    if not prompts:
        raise no_prompts()
    check_untrained(out)
    said = card if padding == 1 else {**card, "padding": padding}
    with vectors(pipe, [site], prompts, out.with_name(out.name + ".features"), captured, padding, bos) as read:
        return train_on(
            pipe, site, prompts, read[site], config, out, card=said, progress=progress, device=device, bos=bos
        )


def train_on(
    pipe: Pipeline,
    site: Site,
    prompts: Sequence[str],
    features: Features,
    config: TrainConfig,
    out: Path,
    *,
    card: Mapping[str, Any],
    progress: Callable[[Progress], None] | None = None,
    device: str = "cpu",
    bos: bool = False,
) -> TopKSAE:
    """Train an SAE into `out` on what `vectors` read of `prompts` at `site`, with `bos` or without it.

    Raises as `excise.sae.train` does.
    """

    def fidelity(sae: TopKSAE) -> dict[str, Any]:
        few = prompts[:: -(-len(prompts) // FIDELITY_PROMPTS)]
        positions = by_position(pipe, site, sae, few)

        def stands_in(x: Tensor) -> Tensor:
            made = sae(x.to(sae.W_enc))[0]
            # What it was not trained on stays as it is, as it does under an eraser.
            return made if bos or "bos" not in positions else torch.cat([x[:, :1].to(made), made[:, 1:]], 1)

        return {"positions": positions, "final_state_cosine": final_state_cosine(pipe, site, stands_in, few)}

    said = {**card, "site": asdict(site), "prompts": len(prompts), "bos": bos}
    return train(features, config, out, card=said, progress=progress, measure=fidelity, device=device)


@contextmanager
def shown(
    working: Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]], prompts: int, tokens: int
) -> Iterator[tuple[Callable[[int], None], Callable[[Progress], None]]]:
    """`captured` and `progress` for `train_sae`, shown by `working(title, total)`: one bar, then the other."""
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
