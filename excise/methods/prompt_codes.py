"""Codes of prompts at a Site: all neurons for scoring, the edited ones at every position for calibrating."""

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
"""The pre-activation of a position that a prompt has not got."""
REMEMBERED = 1024
"""Prompts whose states are kept in memory: 77 of 768 values each take 240 MB."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """What has been read and encoded, by what of."""

    features: dict[Any, list[Features]] = field(default_factory=dict)
    codes: dict[Any, tuple[PromptCodes, Tensor]] = field(default_factory=dict)


_SEEN: ContextVar[_Seen | None] = ContextVar("excise_seen", default=None)


@dataclass(frozen=True, eq=False)
class Reading:
    """The edited neurons on some prompts, every position: pre-activations and TopK codes `[P, T, k]` on the CPU."""

    preacts: Tensor
    topk: Tensor
    scored: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, pipe: Pipeline, sae: TopKSAE, edit: SAEEdit, prompts: Sequence[str], batch_size: int = 64) -> Reading:
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
        """Codes `[P, T, k]` as the edit's gate reads them."""
        return edit.after_lead(self.topk) if edit.gate == "topk" else edit.gated(self.preacts)

    def with_more(self, other: Reading) -> Reading:
        """Of these prompts, then those."""
        fills = {"preacts": SILENT, "topk": 0, "scored": 0}
        both = {name: stacked([getattr(self, name), getattr(other, name)], fill) for name, fill in fills.items()}
        return Reading(**both)

    @property
    def lead(self) -> int:
        """1 where the first state comes before any word and is the same in every prompt (a causal encoder's BOS)."""
        first = self.preacts[:, 0]
        return int(not self.scored[:, 0].any() and torch.allclose(first, first[:1], atol=1e-3, rtol=1e-3))


def features(pipe: Pipeline, site: Site, prompts: Sequence[str], batch_size: int = 64) -> list[Features]:
    """Batches as the model itself gives them, whatever eraser is attached to it."""
    seen, key = _SEEN.get(), (id(pipe), site, tuple(prompts), batch_size)
    if seen is not None and key in seen.features:
        return seen.features[key]
    with unedited():
        read = list(capture(pipe, [site], prompts, batch_size))
    if seen is not None and sum(len(batch.ids) for own in seen.features.values() for batch in own) < REMEMBERED:
        seen.features[key] = read
    return read


@contextmanager
def remembered() -> Iterator[None]:
    """Within it the same prompts are read once at a Site, up to `REMEMBERED` of them, and encoded once by an SAE, while
    neither model nor SAE changes."""
    token = _SEEN.set(_Seen())
    try:
        yield
    finally:
        _SEEN.reset(token)


@torch.no_grad()
def prompt_codes(
    pipe: Pipeline, sae: TopKSAE, site: Site, prompts: Sequence[str], batch_size: int = 64
) -> tuple[PromptCodes, Tensor]:
    """TopK codes of whole prompts, and their token ids `[P, T]`."""
    seen, key = _SEEN.get(), (id(pipe), id(sae), site, tuple(prompts), batch_size)
    if seen is not None and key in seen.codes:
        return seen.codes[key]
    values, indices, scored, ids = [], [], [], []
    for batch in features(pipe, site, prompts, batch_size):
        codes = sae.encode(batch.states[site].to(sae.W_enc))
        values.append(codes.values.cpu())
        indices.append(codes.indices.cpu())
        scored.append(batch.scored.cpu())
        ids.append(batch.ids.cpu())
    codes_of = PromptCodes(stacked(values), stacked(indices), stacked(scored), sae.config.m)
    found = codes_of, stacked(ids)
    if seen is not None:
        seen.codes[key] = found
    return found


def stacked(batches: Sequence[Tensor], fill: float = 0) -> Tensor:
    """Batches `[B, T, ...]` one after the other, shorter ones filled up: some pipelines pad to the longest prompt of a
    batch."""
    longest = max(batch.shape[1] for batch in batches)
    filled = []
    for batch in batches:
        missing = batch.new_full((len(batch), longest - batch.shape[1], *batch.shape[2:]), fill)
        filled.append(torch.cat([batch, missing], 1))
    return torch.cat(filled)


@torch.no_grad()
def carried_share(pipe: Pipeline, sae: TopKSAE, edit: SAEEdit, concept: Concept, batch_size: int = 64) -> float:
    """How much of what the concept changes in a sentence the edit takes out at λ = 1, where it takes out least.

    Looked at in two places: the state of the concept's own word, and the last one that is no padding, which carries the
    sentence. In each, Δ is the mean over the concept's pairs of the concept prompt's state less the deconcept prompt's,
    s the mean of what the edit subtracts, and the share is s·Δ / Δ·Δ; 1 is all of it.
    """
    plain = replace(edit, lam=1.0)

    def read(prompts: Sequence[str]) -> tuple[Tensor, Tensor, list[list[int]]]:
        """States `[P, T, d]`, what the edit subtracts from them, and every prompt's ids without padding."""
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
    words = [(p, *ends) for p in pairs if (ends := _last_of_difference(ids[p], other_ids[p])) is not None]
    if words:
        places.append(words)
    shares = []
    for place in places:
        own = torch.stack([states[p, at] for p, at, _ in place]).double().mean(0)
        change = own - torch.stack([others[p, at] for p, _, at in place]).double().mean(0)
        subtracted = torch.stack([taken[p, at] for p, at, _ in place]).double().mean(0)
        shares.append(float(subtracted @ change / (change @ change)))
    return min(shares)


def _last_of_difference(one: Sequence[int], other: Sequence[int]) -> tuple[int, int] | None:
    """Where the stretches end in which two lists of ids differ; None where one of them has nothing there."""
    length = min(len(one), len(other))
    head = next((n for n in range(length) if one[n] != other[n]), length)
    tail = next((n for n in range(length - head) if one[-1 - n] != other[-1 - n]), length - head)
    ends = len(one) - tail - 1, len(other) - tail - 1
    return ends if min(ends) >= head else None


def concept_codes(pipe: Pipeline, sae: TopKSAE, edit: SAEEdit, mentions: Sequence[str], align: Align) -> Tensor:
    """Z_c of eq. 8, `[T, k]`: of the comma-joined tuple by position, or the mean over mentions of their mean code.

    The pooled mean goes to every position but the first: a BOS state comes before any word and carries none.
    Raises ExciseError where the neurons are silent on the tuple.
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
