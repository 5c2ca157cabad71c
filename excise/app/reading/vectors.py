"""The vectors that an SAE of a text encoder is trained on: in memory, in shards, or made when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excise.app.reading.corpus import Corpus
from excise.app.reading.group_states import TokenParts, in_memory, made_when_needed
from excise.app.reading.reading import HERE, Reading, help_read, stored
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError
from excise.pipeline import Pipeline
from excise.sae.data import Features
from excise.sae.parallel import ALONE, Mesh
from excise.sites import LanguageModel, Site, capture, capture_by_length
from excise.sites.activations.token_shards import Parts, TextParts

IN_MEMORY = 2 << 30
"""Most bytes of features kept in memory. Larger ones are stored in shards next to the SAE's folder."""
POSITIONS, TYPICAL = 77, 24
"""Positions of a prompt with its padding, and typical positions without it."""
Prompts = Sequence[str] | Corpus
"""Prompts of a training: texts, or a tokenised corpus."""


def no_prompts() -> ExciseError:
    """Return the error for an empty corpus."""
    return ExciseError("there are no prompts to train on; check the prompts file")


@unedited()
def features(
    pipe: Pipeline,
    sites: Sequence[Site],
    prompts: Iterable[str],
    progress: Callable[[int], Any] | None = None,
    padding: float = 1.0,
    bos: bool = False,
) -> dict[Site, Tensor]:
    """Return the model's own states of words and EOS at `sites` of one text encoder, `[N, width]` float32.

    For a share `padding` of the prompts also those of padding, and with `bos` the first state, if it is not a word's.
    For a language model they are the words' only.
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
    return {site: torch.cat(states) for site, states in rows.items()}


@contextmanager
def vectors(
    pipe: Pipeline,
    sites: Sequence[Site],
    prompts: Prompts,
    folder: Path,
    progress: Callable[[int], Any] | None = None,
    padding: float = 1.0,
    bos: bool = False,
    mesh: Mesh = ALONE,
    reading: Reading = HERE,
) -> Iterator[dict[Site, Features]]:
    """Read training features for SAEs at several Sites of one text encoder, in one pass over the prompts.

    Features up to `IN_MEMORY` bytes stay in memory, unless `reading` says otherwise. Larger ones, and always those of a
    language model, go to shards in `folder`, so that an interrupted reading can be resumed. The folder is removed after
    the block has run. Those of a tokenised corpus may instead be made when a training needs them (`Reading.makes`).
    Ranks get what rank 0 has read, or divide the shards among themselves; `progress` then counts as if all were equally
    fast.
    """
    parts = parts_of(pipe, sites, prompts, padding, bos)
    language = isinstance(pipe, LanguageModel)
    read = len(prompts) * (TYPICAL + padding * (POSITIONS - TYPICAL))
    count = sum(parts.vectors()) if isinstance(parts, TokenParts) else read
    if count * sum(site.width for site in sites) * 4 <= IN_MEMORY and not language and reading.may_be_in_memory:

        def states() -> dict[Site, Tensor]:
            if mesh.rank:
                return {}
            if isinstance(parts, TokenParts):
                return in_memory(pipe, sites, parts, progress)
            texts = () if isinstance(prompts, Corpus) else prompts
            return features(pipe, sites, texts, progress, padding, bos)

        own = mesh.together(states)
        yield {site: mesh.sent(own.get(site)) for site in sites}
    elif reading.makes(pipe, sites[0].component, parts):
        assert isinstance(parts, TokenParts)
        yield {site: made_when_needed(pipe, site, parts) for site in sites}
    else:
        # A language model's features took hours: do not replace them if other texts are named this time.
        replaced = not language and reading.is_here
        with stored(
            pipe, sites, parts, folder, reading=reading, overwrite=replaced, progress=progress, mesh=mesh
        ) as found:
            yield found


def help_with(
    pipe: Pipeline,
    site: Site,
    prompts: Prompts,
    out: Path,
    *,
    reading: Reading,
    captured: Callable[[int], Any] | None = None,
    padding: float = 1.0,
    bos: bool = False,
) -> None:
    """Read states for a training into `out` by the first slice, in which this process is another one.

    Raises:
        ExciseError: As `train_sae`.
    """
    parts = parts_of(pipe, [site], prompts, padding, bos)
    if not reading.makes(pipe, site.component, parts):
        help_read(pipe, [site], parts, shards_folder(out), out=out, reading=reading, progress=captured)


def parts_of(pipe: Pipeline, sites: Sequence[Site], prompts: Prompts, padding: float, bos: bool) -> Parts:
    """Return a corpus in the parts that become shards. Raises ExciseError if it is empty, or for other tokens."""
    if not prompts:
        raise no_prompts()
    if not isinstance(prompts, Corpus):
        return TextParts(tuple(prompts), padding, bos)
    prompts.check(pipe, sites[0].component)
    return TokenParts(prompts, padding, bos)


def shards_folder(out: Path) -> Path:
    """Return the folder of the shards for an SAE."""
    return out.with_name(out.name + ".features")
