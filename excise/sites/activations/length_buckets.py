"""Features at Sites without needless padding.

CLIP's text encoders are causal: no word attends to the padding after it, which is most of the 77 positions. So prompts
are read without padding, in batches of similar length, or several in one row (`packing`) if that is cheaper. Padding is
computed only for the batches that keep it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from excise.errors import ExciseError
from excise.pipeline import Pipeline
from excise.sites.activations.capture import Features, capture, is_clip, listening, located, run_clip
from excise.sites.activations.packing import Rows, can_pack, packed, run_packed, unpacked
from excise.sites.activations.tokenising import tokenise
from excise.sites.encoding import Enough
from excise.sites.language import LanguageModel
from excise.sites.site import Site, encoder_of

WINDOW = 1024
"""Number of prompts that are sorted by length at a time."""
GOLDEN = (5**0.5 - 1) / 2


class Batch(NamedTuple):
    """Prompts that were read together."""

    numbers: list[int]
    """Their indices in the stream, from 0."""
    features: Features
    """T is the longest prompt's length, or all positions in a batch that keeps padding. In other batches, states after
    a prompt's end are meaningless."""


def capture_by_length(
    pipe: Pipeline,
    sites: Iterable[Site],
    prompts: Iterable[str],
    batch_size: int = 64,
    *,
    padding: float = 0.0,
    seed: int = 0,
) -> Iterator[Batch]:
    """Yield features of `prompts` at `sites` of one text encoder, in batches of similar length.

    Equal prompts and shared prefixes are computed once. An encoder that is not causal computes all positions, and keeps
    the same share of padding. A language model has no padding to keep.

    Args:
        pipe: The pipeline.
        sites: Sites of one text encoder.
        prompts: The prompts.
        batch_size: Prompts per batch.
        padding: Share of batches, from 0 to 1, in which all positions are computed and kept. In the others it is only
            BOS, words and EOS. So padding states of every position and length are sampled at this share.
        seed: Seed for the choice of these batches.

    Raises:
        ExciseError: as `capture` does, and if the share is not between 0 and 1.
    """
    if not 0 <= padding <= 1:
        raise ExciseError(f"padding is {padding:g}; it must be a share from 0 to 1")
    wanted = list(dict.fromkeys(sites))
    component, modules = located(pipe, wanted)
    # Multiples of the golden ratio modulo 1 are evenly spread, whatever the order of lengths.
    places = (place % 1 for place in itertools.count(random.Random(seed).random(), GOLDEN))
    stream, first = iter(prompts), 0
    causal = not isinstance(pipe, LanguageModel) and is_clip(encoder_of(pipe, component))

    def whole() -> bool:
        return next(places) < padding

    while window := list(itertools.islice(stream, WINDOW)):
        if causal:
            batches = _causal(pipe, component, modules, tokenise(pipe, component, window), batch_size, whole)
        else:
            batches = _padded(pipe, wanted, window, batch_size, whole)
        for batch in batches:
            yield batch._replace(numbers=[first + number for number in batch.numbers])
        first += len(window)


def capture_ids(
    pipe: Pipeline,
    sites: Iterable[Site],
    tokens: tuple[Tensor, Tensor, Tensor],
    batch_size: int = 64,
    *,
    whole: bool = False,
) -> Iterator[Batch]:
    """Yield features of prompts that are tokens already, at Sites of one CLIP text encoder, in batches of one length.

    Args:
        pipe: The pipeline.
        sites: Sites of one text encoder.
        tokens: Ids, attention mask and scored mask of the prompts, each `[P, T]`, as `tokenise` returns them.
        batch_size: Prompts per batch.
        whole: Whether to compute all positions, or only BOS, words and EOS.

    Raises:
        ExciseError: as `capture` does, and if the encoder is not CLIP's.
    """
    component, modules = located(pipe, sites)
    if not is_clip(encoder_of(pipe, component)):
        raise ExciseError(f"{component} is not a CLIP text encoder; give its prompts as text")
    return _causal(pipe, component, modules, tokens, batch_size, lambda: whole)


def _causal(
    pipe: Pipeline,
    component: str,
    modules: dict[Site, nn.Module],
    tokens: tuple[Tensor, Tensor, Tensor],
    batch_size: int,
    whole: Callable[[], bool],
) -> Iterator[Batch]:
    encoder = encoder_of(pipe, component)
    ids, attention, scored = tokens
    # A kind is a set of equal prompts. Kinds are in lexicographic order, and `alike` lists prompts in order of kinds.
    _, place, counts = torch.unique(ids, dim=0, return_inverse=True, return_counts=True)
    alike, begins = place.argsort(stable=True), counts.cumsum(0) - counts
    ends = attention.sum(1)

    def batch(kinds: Tensor, states: dict[Site, Tensor], kept: bool) -> Batch:
        """Expand these kinds' states `[K, T, d]` to all prompts of the kinds."""
        copies = counts[kinds]
        rows = torch.arange(len(kinds)).repeat_interleave(copies)
        # From a kind's first prompt on, as many as it has.
        numbers = alike[torch.arange(len(rows)) + (begins[kinds] - copies.cumsum(0) + copies)[rows]]
        if len(rows) > len(kinds):
            states = {site: state[rows.to(state.device)] for site, state in states.items()}
        end = next(iter(states.values())).shape[1]
        mask = attention[numbers, :end].bool() if kept else None
        return Batch(numbers.tolist(), Features(states, ids[numbers, :end], scored[numbers, :end], mask))

    def run(kinds: Tensor, end: int) -> dict[Site, Tensor]:
        rows = alike[begins[kinds]]
        with listening(modules) as states:
            run_clip(encoder, ids[rows, :end], attention[rows, :end])
        return states

    lengths = ends[alike[begins]]
    rest: list[Tensor] = []
    # Longest first, so that each batch fits into the memory that the last one freed.
    for kinds in torch.split(lengths.argsort(stable=True, descending=True), batch_size):
        if whole():
            yield batch(kinds, run(kinds, ids.shape[1]), kept=False)
        else:
            rest.append(kinds)
    if not rest:
        return
    together: list[tuple[Tensor, Rows]] = []
    for kinds in torch.split(torch.cat(rest).sort().values, 2 * batch_size) if can_pack(encoder) else ():
        firsts = alike[begins[kinds]]
        together.append((kinds, packed(ids[firsts], ends[firsts], ids.shape[1])))
    # Packing pays if many prompts share prefixes, but long prompts seldom fill a row.
    if together and sum(rows.ids.numel() for _, rows in together) < sum(len(k) * int(lengths[k].max()) for k in rest):
        for kinds, rows in together:
            with listening(modules) as states, suppress(Enough):
                run_packed(encoder, rows)
            yield batch(kinds, {site: unpacked(state, rows) for site, state in states.items()}, kept=True)
    else:
        for kinds in rest:
            yield batch(kinds, run(kinds, int(lengths[kinds].max())), kept=True)


def _padded(
    pipe: Pipeline, sites: list[Site], prompts: list[str], batch_size: int, whole: Callable[[], bool]
) -> Iterator[Batch]:
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]), reverse=True)  # as above
    for begin, features in enumerate(capture(pipe, sites, [prompts[number] for number in order], batch_size)):
        numbers = order[begin * batch_size : begin * batch_size + len(features.ids)]
        if not isinstance(pipe, LanguageModel) and not whole():
            ids, scored = features.ids.cpu(), features.scored.cpu()
            kept = _begun(scored) if features.kept is None else _begun(scored) & features.kept
            features = Features(features.states, ids, scored, kept)
        yield Batch(numbers, features)


def _begun(scored: Tensor) -> Tensor:
    """Return `[B, T]` bool: all positions up to the last scored one, including BOS and templates."""
    return scored.flip(1).cummax(1).values.flip(1).bool()
