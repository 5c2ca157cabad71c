"""Features at Sites with no more padding computed than is used.

CLIP's text encoders are causal: no word hears the padding behind it, which is most of the 77 positions. So prompts are
read without it: those of like length together, or several in one row (`packing`) where that is less. Only where padding
itself is wanted is it computed.
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
from excise.sites.activations.capture import Features, capture, is_clip, listening, located, run_clip, tokenise
from excise.sites.activations.packing import Rows, can_pack, packed, run_packed, unpacked
from excise.sites.encoding import Enough
from excise.sites.language import LanguageModel
from excise.sites.site import Site, encoder_of

WINDOW = 1024
"""Prompts that are looked at to put like lengths together."""
GOLDEN = (5**0.5 - 1) / 2


class Batch(NamedTuple):
    """Prompts that were read together."""

    numbers: list[int]
    """Which ones, counted from 0 in the order they came."""
    features: Features
    """T is the longest one's length, or all positions in a batch whose padding is read; what is behind a prompt's end,
    where none of its padding is read, means nothing."""


def capture_by_length(
    pipe: Pipeline,
    sites: Iterable[Site],
    prompts: Iterable[str],
    batch_size: int = 64,
    *,
    padding: float = 0.0,
    seed: int = 0,
) -> Iterator[Batch]:
    """Features of `prompts` at `sites` of one text encoder, those of like length together.

    Of a share of `padding` of the batches, drawn by `seed`, all positions are computed and kept, of the others only
    BOS, words and EOS: padding states of every position and every length are there, as many as the share says. Prompts
    that are the same are computed once, and so is what prompts begin with alike. An encoder that is not causal computes
    all positions and keeps as many; a language model has no padding to keep.

    Raises ExciseError as `capture`, and for a share outside 0 to 1.
    """
    if not 0 <= padding <= 1:
        raise ExciseError(f"padding is a share from 0 to 1, not {padding:g}")
    wanted = list(dict.fromkeys(sites))
    component, modules = located(pipe, wanted)
    # Multiples of the golden ratio hit every stretch of 0 to 1 evenly, whatever lengths follow one another.
    places = (place % 1 for place in itertools.count(random.Random(seed).random(), GOLDEN))
    stream, first = iter(prompts), 0
    causal = not isinstance(pipe, LanguageModel) and is_clip(encoder_of(pipe, component))

    def whole() -> bool:
        return next(places) < padding

    while window := list(itertools.islice(stream, WINDOW)):
        if causal:
            batches = _causal(pipe, component, modules, window, batch_size, whole)
        else:
            batches = _padded(pipe, wanted, window, batch_size, whole)
        for batch in batches:
            yield batch._replace(numbers=[first + number for number in batch.numbers])
        first += len(window)


def _causal(
    pipe: Pipeline,
    component: str,
    modules: dict[Site, nn.Module],
    prompts: list[str],
    batch_size: int,
    whole: Callable[[], bool],
) -> Iterator[Batch]:
    encoder = encoder_of(pipe, component)
    ids, attention, scored = tokenise(pipe, component, prompts)
    # Kinds are in lexicographic order; prompts in the order of their kinds, so that each kind's are a stretch.
    _, place, counts = torch.unique(ids, dim=0, return_inverse=True, return_counts=True)
    alike, begins = place.argsort(stable=True), counts.cumsum(0) - counts
    ends = attention.sum(1)

    def batch(kinds: Tensor, states: dict[Site, Tensor], kept: bool) -> Batch:
        """Of these kinds' states `[K, T, d]`, those of all prompts of the kinds."""
        copies = counts[kinds]
        numbers = torch.cat([alike[begin : begin + n] for begin, n in zip(begins[kinds], copies, strict=True)])
        again = torch.arange(len(kinds)).repeat_interleave(copies)
        if len(again) > len(kinds):
            states = {site: state[again.to(state.device)] for site, state in states.items()}
        end = next(iter(states.values())).shape[1]
        own = attention[numbers, :end].bool() if kept else None
        return Batch(numbers.tolist(), Features(states, ids[numbers, :end], scored[numbers, :end], own))

    def run(kinds: Tensor, end: int) -> dict[Site, Tensor]:
        rows = alike[begins[kinds]]
        with listening(modules) as states:
            run_clip(encoder, ids[rows, :end], attention[rows, :end])
        return states

    lengths = ends[alike[begins]]
    rest: list[Tensor] = []
    # Longest first: what the next batch allocates fits where the last one's was freed, and memory has no holes.
    for kinds in torch.split(lengths.argsort(stable=True, descending=True), batch_size):
        if whole():
            yield batch(kinds, run(kinds, ids.shape[1]), kept=False)
        else:
            rest.append(kinds)
    if not rest:
        return
    together: list[tuple[Tensor, Rows]] = []
    for kinds in torch.split(torch.cat(rest).sort().values, 2 * batch_size) if can_pack(encoder) else ():
        firsts = alike[begins[kinds]].tolist()
        together.append((kinds, packed([ids[row, : ends[row]].tolist() for row in firsts], ids.shape[1])))
    # Rows are seldom full where prompts are long, and pay where many begin alike.
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
        if features.kept is None and not whole():
            ids, scored = features.ids.cpu(), features.scored.cpu()
            features = Features(features.states, ids, scored, _begun(scored))
        yield Batch(numbers, features)


def _begun(scored: Tensor) -> Tensor:
    """`[B, T]` bool: everything up to the last scored position, BOS and templates included."""
    return scored.flip(1).cummax(1).values.flip(1).bool()
