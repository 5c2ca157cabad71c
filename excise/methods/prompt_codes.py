"""Codes of prompts at a Site: of all neurons for scoring, of the edited ones at every position for calibration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from excise.concepts import Concept
from excise.erasers import SAEEdit
from excise.erasers.choices import Align
from excise.erasers.edits.sae_rows import preactivations, topk_codes
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError
from excise.neurons import PromptCodes
from excise.pipeline import Pipeline
from excise.sae import TopKSAE
from excise.sites import Features, Site, capture

SILENT = -1e4
"""Pre-activation that stands for positions beyond a prompt's end."""
REMEMBERED = 1024
"""Number of prompts whose states are cached: 77 of 768 values for each take 240 MB."""


SAME, ROUNDING = 1e-3, 0.01
"""Differences of a first state's pre-activations between prompts that count as none: in units of the pre-activation,
and as a share of the spread over words."""


@dataclass(frozen=True, eq=False)
class _Cache:
    """Cache of features and codes, keyed by their inputs."""

    features: dict[Any, list[Features]] = field(default_factory=dict)
    codes: dict[Any, tuple[PromptCodes, Tensor]] = field(default_factory=dict)


_CACHE: ContextVar[_Cache | None] = ContextVar("excise_cache", default=None)


@dataclass(frozen=True, eq=False)
class Reading:
    """Pre-activations and TopK codes `[P, T, k]` of the edited neurons at every position of prompts, on the CPU."""

    preacts: Tensor
    topk: Tensor
    scored: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, pipe: Pipeline, sae: TopKSAE, edit: SAEEdit, prompts: Sequence[str], batch_size: int = 64) -> Reading:
        """Encode `prompts`. Raises ExciseError if there are none."""
        if not prompts:
            raise ExciseError("the concept has no deconcept prompts to calibrate on; give it pairs")
        rows = edit.indices.to(sae.W_enc.device)
        parts = (sae.W_enc[rows], sae.b_enc[rows], sae.b_pre)
        preacts = [
            preactivations(batch.states[edit.site].to(sae.W_enc), *parts).cpu()
            for batch in features(pipe, edit.site, prompts, batch_size)
        ]
        codes, _ = prompt_codes(pipe, sae, edit.site, prompts, batch_size)
        topk = topk_codes(codes.values, codes.indices, edit.indices.cpu())
        return cls(stacked(preacts, SILENT), topk, codes.scored)

    def codes(self, edit: SAEEdit) -> Tensor:
        """Return codes `[P, T, k]` as the edit's gate reads them."""
        return edit.after_lead(self.topk) if edit.gate == "topk" else edit.gated(self.preacts)

    def acting(self, edit: SAEEdit) -> Tensor:
        """Return whether the edit acts on each prompt, bool `[P]`."""
        return (self.codes(edit) > 0).flatten(1).any(1)

    def with_more(self, other: Reading) -> Reading:
        """Return these prompts' codes followed by the other's."""
        fills = {"preacts": SILENT, "topk": 0, "scored": 0}
        both = {name: stacked([getattr(self, name), getattr(other, name)], fill) for name, fill in fills.items()}
        return Reading(**both)

    @property
    def lead(self) -> int:
        """1 if the first token is a special one and its state does not depend on the prompt (a causal encoder's BOS).

        Otherwise 0. Prompts of other batches and half precision give slightly different states, so a spread of up to a
        hundredth of the words' counts as none.
        """
        first, words = self.preacts[:, 0], self.preacts[self.scored]
        if self.scored[:, 0].any():
            return 0
        spread = words.amax(0) - words.amin(0) if len(words) else torch.zeros_like(first[0])
        return int(bool(((first.amax(0) - first.amin(0)) <= SAME + ROUNDING * spread).all()))

    @property
    def varying_start(self) -> bool:
        """Whether the first token is a special one whose state depends on the prompt."""
        return not self.scored[:, 0].any() and not self.lead


def features(pipe: Pipeline, site: Site, prompts: Sequence[str], batch_size: int = 64) -> list[Features]:
    """Return batches of the model's own states at a Site, whatever eraser is attached to it."""
    cache, key = _CACHE.get(), (id(pipe), site, tuple(prompts), batch_size)
    if cache is not None and key in cache.features:
        return cache.features[key]
    with unedited():
        read = list(capture(pipe, [site], prompts, batch_size))
    if cache is not None and sum(len(batch.ids) for own in cache.features.values() for batch in own) < REMEMBERED:
        cache.features[key] = read
    return read


@contextmanager
def cached_codes() -> Iterator[None]:
    """Cache states and codes of prompts within this context, up to `REMEMBERED` prompts.

    Neither the model nor the SAE may change meanwhile. A nested context shares the cache of the outer one.
    """
    if _CACHE.get() is not None:
        yield
        return
    token = _CACHE.set(_Cache())
    try:
        yield
    finally:
        _CACHE.reset(token)


@torch.no_grad()
def prompt_codes(
    pipe: Pipeline, sae: TopKSAE, site: Site, prompts: Sequence[str], batch_size: int = 64
) -> tuple[PromptCodes, Tensor]:
    """Return the TopK codes of whole prompts, and their token ids `[P, T]`."""
    cache, key = _CACHE.get(), (id(pipe), id(sae), site, tuple(prompts), batch_size)
    if cache is not None and key in cache.codes:
        return cache.codes[key]
    values, indices, scored, ids = [], [], [], []
    for batch in features(pipe, site, prompts, batch_size):
        codes = sae.encode(batch.states[site].to(sae.W_enc))
        values.append(codes.values.cpu())
        indices.append(codes.indices.cpu())
        scored.append(batch.scored.cpu())
        ids.append(batch.ids.cpu())
    codes_of = PromptCodes(stacked(values), stacked(indices), stacked(scored), sae.config.m)
    found = codes_of, stacked(ids)
    if cache is not None:
        cache.codes[key] = found
    return found


def stacked(batches: Sequence[Tensor], fill: float = 0) -> Tensor:
    """Concatenate batches `[B, T, ...]`, padding shorter ones with `fill`.

    Some pipelines pad prompts only to the longest one of a batch.
    """
    longest = max(batch.shape[1] for batch in batches)
    filled = []
    for batch in batches:
        missing = batch.new_full((len(batch), longest - batch.shape[1], *batch.shape[2:]), fill)
        filled.append(torch.cat([batch, missing], 1))
    return torch.cat(filled)


@torch.no_grad()
def carried_share(pipe: Pipeline, sae: TopKSAE, edit: SAEEdit, concept: Concept, batch_size: int = 64) -> float:
    """Return how much of what the concept changes in a sentence the edit removes at λ = 1, where it removes least.

    Measured at two places: the state of the concept's own word, and the last state before padding, which summarises the
    sentence. At each, Δ is the mean over the concept's pairs of the concept prompt's state minus the deconcept
    prompt's, and s the mean of what the edit subtracts. The share is s·Δ / Δ·Δ; 1 is all of it.
    """
    plain = replace(edit, lam=1.0)

    def read(prompts: Sequence[str]) -> tuple[Tensor, Tensor, list[list[int]]]:
        """Return states `[P, T, d]`, what the edit subtracts from them, and every prompt's ids without padding."""
        states, taken, ids = [], [], []
        for batch in features(pipe, edit.site, prompts, batch_size):
            h = batch.states[edit.site].float()
            states.append(h.cpu())
            taken.append((h - plain.to(h.device).apply(h, sae=sae)).cpu())
            ends = (batch.scored * torch.arange(h.shape[1], device=batch.scored.device)).argmax(1)
            ids += [row[: int(end) + 1].tolist() for row, end in zip(batch.ids, ends, strict=True)]
        return stacked(states), stacked(taken), ids

    states, taken, ids = read([pair.concept for pair in concept.pairs])
    others, _, other_ids = read([pair.deconcept for pair in concept.pairs])
    pairs = range(len(ids))
    places = [[(p, len(ids[p]) - 1, len(other_ids[p]) - 1) for p in pairs]]
    words = [(p, *ends) for p in pairs if (ends := difference_ends(ids[p], other_ids[p])) is not None]
    if words:
        places.append(words)
    shares = []
    for place in places:
        own = torch.stack([states[p, at] for p, at, _ in place]).double().mean(0)
        change = own - torch.stack([others[p, at] for p, _, at in place]).double().mean(0)
        subtracted = torch.stack([taken[p, at] for p, at, _ in place]).double().mean(0)
        shares.append(float(subtracted @ change / (change @ change)))
    return min(shares)


def difference_ends(one: Sequence[int], other: Sequence[int]) -> tuple[int, int] | None:
    """Return where the differing stretch of two lists of ids ends in each; None if it is empty in one of them."""
    length = min(len(one), len(other))
    head = next((n for n in range(length) if one[n] != other[n]), length)
    tail = next((n for n in range(length - head) if one[-1 - n] != other[-1 - n]), length - head)
    ends = len(one) - tail - 1, len(other) - tail - 1
    return ends if min(ends) >= head else None


def concept_codes(pipe: Pipeline, sae: TopKSAE, edit: SAEEdit, mentions: Sequence[str], align: Align) -> Tensor:
    """Return Z_c of eq. 8 `[T, k]`: codes of the comma-joined mentions by position, or the mean of mean codes.

    The pooled mean goes to every position but the first: a BOS state precedes all words and carries none.
    Raises ExciseError if the neurons are silent on the mentions.
    """
    if align == "position":
        codes = Reading.of(pipe, sae, edit, [", ".join(mentions)]).codes(edit)[0]
    else:
        read = Reading.of(pipe, sae, edit, mentions)
        weight = read.scored[..., None].to(read.preacts.dtype)
        mean = ((read.codes(edit) * weight).sum(1) / weight.sum(1).clamp(min=1)).mean(0)
        codes = mean.repeat(read.preacts.shape[1], 1)
        codes[0] = 0
    if not bool((codes > 0).any()):
        raise ExciseError(
            f"neurons {edit.indices.tolist()} are silent on the mentions of {', '.join(mentions)!r}, so there is "
            'nothing to subtract; use source="prompt" or other neurons'
        )
    return codes.float()
