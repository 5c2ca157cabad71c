"""Scores that rank SAE neurons for a concept, from sparse codes of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from excise.errors import ExciseError


class PromptCodes(NamedTuple):
    """TopK codes of P prompts of T tokens, k codes per token.

    values [P,T,k] >= 0, indices [P,T,k] in 0..m-1 (distinct within a token), scored [P,T] bool: the token positions
    that count, by default all but BOS and padding. m: the SAE's width.
    """

    values: Tensor
    indices: Tensor
    scored: Tensor
    m: int

    def rows(self, rows: Tensor) -> PromptCodes:
        """Return the codes of some prompts; rows [R] are prompt indices or [P] a mask."""
        return PromptCodes(self.values[rows], self.indices[rows], self.scored[rows], self.m)


class Score(NamedTuple):
    """Per neuron: s [m] (eq. 5), f [m] activation frequency (eq. 4), mean [m] of normalised activations. float64."""

    s: Tensor
    f: Tensor
    mean: Tensor


class Scored(NamedTuple):
    """Result of a score: `rank_by` [m] orders the neurons, `kept` [m] bool are eligible; plus both sides' scores."""

    rank_by: Tensor
    kept: Tensor
    concept: Score
    deconcept: Score


def modulated_frequency(values: Tensor, indices: Tensor, mask: Tensor, m: int) -> Score:
    """Return the modulated frequency score (SNCE eqs. 4-5), pooled over the tokens in `mask` [P,T].

    `values` and `indices` [P,T,k] are codes. Z_norm: each token's code vector over the m neurons divided by its L2 norm
    (a token without a code stays zero). f_i = sum_j 1[Z_norm[i,j] > 0], s_i = f_i * (1/N) sum_j Z_norm[i,j], j over the
    N tokens in the mask. Raises ExciseError if no token is scored, ValueError for shapes that do not match.
    """
    per_prompt = _per_prompt(values, indices, mask, m)
    n = mask.sum()
    if n == 0:
        raise ExciseError("no token is scored: the prompts are empty, or the mask excludes all of them")
    f, total = per_prompt.counts.sum(0), per_prompt.sums.sum(0)
    return Score(f * total / n, f, total / n)


def modulated_frequency_per_prompt(values: Tensor, indices: Tensor, mask: Tensor, m: int) -> Score:
    """Return eqs. 4-5 for each prompt separately, N being its own scored tokens: a Score of [P,m] tensors.

    A prompt without a scored token scores zero. Raises ValueError for shapes that do not match.
    """
    per_prompt = _per_prompt(values, indices, mask, m)
    mean = per_prompt.sums / mask.sum(1, keepdim=True).clamp(min=1)
    return Score(per_prompt.counts * mean, per_prompt.counts, mean)


def snce(concept: PromptCodes, deconcept: PromptCodes, tolerance: float = 0.0) -> Scored:
    """Score as SNCE (eqs. 4-7), pooled over pairs: s^c_i, for neurons with s^c_i > 0 and s^d_i <= tolerance * s^c_i.

    Eq. 6 is tolerance 0. The tolerance is relative because a pooled s grows with the number of prompts.
    """
    c, d = modulated_frequency(*concept), modulated_frequency(*deconcept)
    return Scored(c.s, (c.s > 0) & (d.s <= tolerance * c.s), c, d)


def snce_per_pair(concept: PromptCodes, deconcept: PromptCodes, tolerance: float = 0.0) -> Scored:
    """Score as SNCE (eqs. 4-7) read pair by pair: the mean over pairs of s^c_i where eq. 6 holds in that pair.

    A neuron that fires on one deconcept prompt loses that pair, not its eligibility. The Scores are means over pairs
    (f: sums). Raises ExciseError if the two sides differ in number.
    """
    if len(concept.values) != len(deconcept.values):
        raise ExciseError(
            f"{len(concept.values)} concept prompts but {len(deconcept.values)} deconcept prompts: no pairs"
        )
    c, d = modulated_frequency_per_prompt(*concept), modulated_frequency_per_prompt(*deconcept)
    differential = (c.s > 0) & (d.s <= tolerance * c.s)
    by = (c.s * differential).mean(0)
    return Scored(by, by > 0, *(Score(x.s.mean(0), x.f.sum(0), x.mean.mean(0)) for x in (c, d)))


def mean_difference(concept: PromptCodes, deconcept: PromptCodes, tolerance: float = 0.0) -> Scored:
    """Score by the simple baseline: difference of the mean code over scored tokens, mu^c_i - mu^d_i, if positive.

    Codes are not normalised and nothing is filtered by eq. 6: `tolerance` has no effect. The Scores are SNCE's.
    """
    c, d = modulated_frequency(*concept), modulated_frequency(*deconcept)
    by = _mean_code(concept) - _mean_code(deconcept)
    return Scored(by, by > 0, c, d)


SCORES: Mapping[str, Callable[[PromptCodes, PromptCodes, float], Scored]] = {
    "snce": snce,
    "snce_per_pair": snce_per_pair,
    "mean_difference": mean_difference,
}


class _PerPrompt(NamedTuple):
    counts: Tensor  # [P,m] scored tokens with a code > 0
    sums: Tensor  # [P,m] of normalised codes over scored tokens


def _per_prompt(values: Tensor, indices: Tensor, mask: Tensor, m: int) -> _PerPrompt:
    _check(values, indices, mask, m)
    z = values.double()
    norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    z = torch.where(mask[..., None] & (norm > 0), z / norm.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    where = indices.flatten(1).long()
    empty = torch.zeros(len(values), m, dtype=torch.float64, device=values.device)
    return _PerPrompt(
        empty.scatter_add(1, where, (z > 0).flatten(1).double()), empty.scatter_add(1, where, z.flatten(1))
    )


def _mean_code(codes: PromptCodes) -> Tensor:
    z = torch.where(codes.scored[..., None], codes.values.double(), 0.0)
    total = torch.zeros(codes.m, dtype=torch.float64, device=z.device)
    return total.scatter_add(0, codes.indices.flatten().long(), z.flatten()) / codes.scored.sum()


def _check(values: Tensor, indices: Tensor, mask: Tensor, m: int) -> None:
    if values.dim() != 3 or indices.shape != values.shape or mask.shape != values.shape[:2]:
        raise ValueError(
            f"values {tuple(values.shape)}, indices {tuple(indices.shape)} and mask {tuple(mask.shape)} "
            "are not [P,T,k], [P,T,k] and [P,T]"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool, not {mask.dtype}")
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < m:
        raise ValueError(f"indices reach from {int(indices.min())} to {int(indices.max())}, but there are {m} neurons")
