"""The states that an SNCE eraser moves a concept's prompts to: those with another word, or nothing, in its place.

Ours; no paper has it. Turning a neuron down moves a state along one decoder row, which carries only a part of what the
concept's word changes, and past what a prompt without it has. Here every state h of a concept prompt is paired with
the state g at the same place of the prompt with the other word, or without the concept, and u is the least-squares
solution of h - g = Σ_i z_i u_i over all positions, with the codes z that the edit's gate passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from excise.concepts import Concept, Pair
from excise.concepts.instead import pairs_instead
from excise.erasers import SAEEdit
from excise.erasers.edits.replacing_sae import ReplacingSAEEdit
from excise.errors import InvalidSetting
from excise.methods.prompt_codes import features
from excise.pipeline import Pipeline
from excise.sae import TopKSAE
from excise.sites import LanguageModel, Site
from excise.sites.activations.capture import is_clip
from excise.sites.site import encoder_of, tokenizer_of


@torch.no_grad()
def replacing(
    pipe: Pipeline, sae: TopKSAE, edit: SAEEdit, concept: Concept, word: str, batch_size: int = 64
) -> tuple[ReplacingSAEEdit, float]:
    """Return the edit that moves states to those with `word` in the concept's place, and the share that it moves.

    The share is 1 - Σ |h - g - Σ_i z_i u_i|² / Σ |h - g|² over the pairs it is fitted on. Raises as `pairs_to`.
    """
    pairs = pairs_to(pipe, concept, word)
    deconcepts = _read(pipe, edit.site, [pair.deconcept for pair in pairs], batch_size)
    others = [prompt for _, prompts in deconcepts for prompt in prompts]
    padding = tokenizer_of(pipe, edit.site.component).pad_token_id
    codes, apart = list[Tensor](), list[Tensor]()
    for states, prompts in _read(pipe, edit.site, [pair.concept for pair in pairs], batch_size):
        # A batch by itself: some pipelines pad prompts only to the longest one of a batch.
        for code, own in zip(edit.codes(states, sae).cpu(), prompts, strict=True):
            other = others[len(apart)]
            codes.append(code[own.read].double())
            apart.append((own.states - other.states[places(own, other, padding)])[own.read].double())
    z, away = torch.cat(codes), torch.cat(apart)
    moves = least_squares(z, away)
    share = 1 - float((away - z @ moves).square().sum() / away.square().sum().clamp(min=1e-12))
    return ReplacingSAEEdit.of(edit, moves.float(), word), share


def pairs_to(pipe: Pipeline, concept: Concept, word: str) -> tuple[Pair, ...]:
    """Return the pairs to fit on. Raises InvalidSetting for a language model, and as `pairs_instead`."""
    if isinstance(pipe, LanguageModel):
        raise InvalidSetting("replace_with is for pipelines that generate pictures; leave it out")
    return pairs_instead(concept, word)


def least_squares(z: Tensor, apart: Tensor) -> Tensor:
    """Return u `[k, d]`, the smallest that minimises Σ_n |apart_n - Σ_i z_ni u_i|², of z `[N, k]`, apart `[N, d]`."""
    moves: Tensor = torch.linalg.pinv(z.T @ z, hermitian=True) @ (z.T @ apart)
    return moves


def counterparts(own: Sequence[int], other: Sequence[int], length: int, other_length: int) -> list[int]:
    """Return, for each of `length` positions of a prompt, the corresponding position of another prompt.

    Before the first difference both count from the start, after the last one from the end. A position between them
    corresponds to the one as far from the end of the difference, or else to the last before it. Padding corresponds
    to padding.

    Args:
        own: Token ids of the prompt, with special tokens and without padding.
        other: The same of the other prompt.
        length: Number of positions of the prompt, with padding.
        other_length: Number of positions of the other prompt, with padding.
    """
    shorter = min(len(own), len(other))
    head = next((n for n in range(shorter) if own[n] != other[n]), shorter)
    tail = next((n for n in range(shorter - head) if own[-1 - n] != other[-1 - n]), shorter - head)
    places = []
    for n in range(length):
        if n >= len(own):
            place = max(n, len(other))
        elif n < head:
            place = n
        else:
            place = n - len(own) + len(other)
            place = max(place, head if tail < len(other) - head else head - 1) if n < len(own) - tail else place
        places.append(min(max(place, 0), other_length - 1))
    return places


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt's states `[T, d]` on the CPU, its token ids, where these start, and the positions to fit on.

    What pads the prompt is read by the denoiser, unless the encoder has a mask; CLIP's has none.
    """

    states: Tensor
    ids: Sequence[int]
    start: int
    read: slice


def places(own: Prompt, other: Prompt, padding: int | None) -> list[int]:
    """Return the `counterparts` of all positions of a prompt, also if padding stands before the prompts."""
    ids, other_ids = own.ids, other.ids
    if (ids[-1] == padding) != (other_ids[-1] == padding):  # none follows the longest prompt of a batch
        ids, other_ids = (one[:-1] if one[-1] == padding else one for one in (ids, other_ids))
    within = counterparts(ids, other_ids, len(own.states) - own.start, len(other.states) - other.start)
    before = [max(0, other.start - own.start + n) for n in range(own.start)]
    return before + [other.start + n for n in within]


def _read(pipe: Pipeline, site: Site, prompts: Sequence[str], batch_size: int) -> Iterator[tuple[Tensor, list[Prompt]]]:
    """Yield the states `[B, T, d]` of a batch of prompts, and each prompt."""
    padding = tokenizer_of(pipe, site.component).pad_token_id
    masked = not is_clip(encoder_of(pipe, site.component))
    for batch in features(pipe, site, prompts, batch_size):
        states, length = batch.states[site], batch.ids.shape[1]
        ends = (batch.scored.cpu() * torch.arange(length)).argmax(1) + 1
        read = []
        for h, row, end in zip(states.float().cpu(), batch.ids.tolist(), ends.tolist(), strict=True):
            start = next((n for n, one in enumerate(row[:end]) if one != padding), 0)
            ids = without_padding(row[start:end], padding)
            read.append(Prompt(h, ids, start, slice(start, end) if masked else slice(0, length)))
        yield states, read


def without_padding(ids: Sequence[int], padding: int | None) -> Sequence[int]:
    """Return token ids up to the first of the padding at their end: SD3 and Flux give T5 no mask that leaves it out."""
    end = len(ids)
    while end > 1 and ids[end - 1] == ids[end - 2] == padding:
        end -= 1
    return ids[:end]
