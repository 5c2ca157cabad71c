"""The states that an SNCE eraser moves a concept's prompts to: those with another word, or nothing, in its place.

Ours; no paper has it. Turning a neuron down moves a state along one decoder row, which carries only a part of what the
concept's word changes, and past what a prompt without it has. Here every state h of a concept prompt is paired with
the state g at the same place of the prompt with the other word, or without the concept, and u is the least-squares
solution of h - g = Σ_i z_i u_i over all positions, with the codes z that the edit's gate passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from excise.concepts import Concept, Pair
from excise.concepts.instead import pairs_instead
from excise.erasers import SAEEdit
from excise.erasers.edits.replacing_sae import ReplacingSAEEdit
from excise.errors import InvalidSetting
from excise.methods.prompt_codes import features, stacked
from excise.pipeline import Pipeline
from excise.sae import TopKSAE
from excise.sites import LanguageModel


@torch.no_grad()
def replacing(
    pipe: Pipeline, sae: TopKSAE, edit: SAEEdit, concept: Concept, word: str, batch_size: int = 64
) -> tuple[ReplacingSAEEdit, float]:
    """Return the edit that moves states to those with `word` in the concept's place, and the share that it moves.

    The share is 1 - Σ |h - g - Σ_i z_i u_i|² / Σ |h - g|² over the pairs it is fitted on. Raises as `pairs_to`.
    """
    pairs = pairs_to(pipe, concept, word)
    own, ids = _read(pipe, edit, [pair.concept for pair in pairs], batch_size)
    other, other_ids = _read(pipe, edit, [pair.deconcept for pair in pairs], batch_size)
    places = [counterparts(a, b, own.shape[1], other.shape[1]) for a, b in zip(ids, other_ids, strict=True)]
    apart = own - torch.stack([states[at] for states, at in zip(other, places, strict=True)])
    codes = torch.cat([edit.codes(own[n : n + batch_size], sae).cpu() for n in range(0, len(own), batch_size)])
    moves = least_squares(codes.flatten(0, 1).double(), apart.flatten(0, 1).double())
    left = apart.double() - codes.double() @ moves
    share = 1 - float(left.square().sum() / apart.double().square().sum().clamp(min=1e-12))
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


def _read(pipe: Pipeline, edit: SAEEdit, prompts: Sequence[str], batch_size: int) -> tuple[Tensor, list[list[int]]]:
    """Return states `[P, T, d]` on the CPU, and every prompt's token ids without padding."""
    states, ids = [], []
    for batch in features(pipe, edit.site, prompts, batch_size):
        states.append(batch.states[edit.site].float().cpu())
        ends = (batch.scored.cpu() * torch.arange(batch.ids.shape[1])).argmax(1)
        ids += [row[: int(end) + 1] for row, end in zip(batch.ids.tolist(), ends, strict=True)]
    return stacked(states), ids
