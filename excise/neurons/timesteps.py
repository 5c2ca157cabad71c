"""Neurons of a denoiser's block by denoising step: SAeUron's score and its selection (Cywinski & Deja 2025).

Shapes: S steps, m neurons. A mean μ `[S, m]` is over every patch of every picture of a set of prompts.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from excise.errors import ExciseError, InvalidSetting

DELTA = 1e-8
"""Keeps the shares finite if no neuron fires at all."""


class Means:
    """Running means of sparse codes by step, summed in float64, in memory of `[S, m]`."""

    def __init__(self, steps: int, m: int) -> None:
        self._sums = torch.zeros(steps, m, dtype=torch.float64)
        self._patches = torch.zeros(steps, dtype=torch.float64)

    def add(self, step: int, values: Tensor, indices: Tensor) -> None:
        """Add codes `[..., k]` of patches at a step: their values and the neurons that they belong to."""
        self._sums[step].index_add_(0, indices.flatten().cpu(), values.detach().flatten().cpu().double())
        self._patches[step] += values[..., 0].numel()

    @property
    def means(self) -> Tensor:
        """`[S, m]` float64. Raises ExciseError if a step has no patch."""
        if not bool((self._patches > 0).all()):
            missing = int((self._patches == 0).nonzero()[0, 0])
            raise ExciseError(f"step {missing} has no features; capture every step that is scored")
        return self._sums / self._patches[:, None]


def score(own: Tensor, others: Tensor) -> Tensor:
    """Return s_i(t, c) = μ_i(t, D_c) / (Σ_j μ_j(t, D_c) + δ) - μ_i(t, D_¬c) / (Σ_j μ_j(t, D_¬c) + δ), `[S, m]`.

    `own` and `others` are the means over prompts with the concept and over those without it.
    """
    return own / (own.sum(1, keepdim=True) + DELTA) - others / (others.sum(1, keepdim=True) + DELTA)


def select(scores: Tensor, k: int) -> Tensor:
    """Return `[S, m]` bool: at each step, the k neurons that score highest.

    A percentile p, as in the paper, leaves m - 1 - floor(p (m - 1) / 100) of m neurons, which depends on the SAE's
    width. Neurons that score the same as the next one are left out, as by the percentile. Raises ExciseError if k is
    out of range, or if no neuron scores higher than the others.
    """
    m = scores.shape[1]
    if not 1 <= k < m:
        raise InvalidSetting(f"k is {k}; it lies from 1 to {m - 1}, as the SAE has {m} neurons")
    levels = scores.kthvalue(m - k, dim=1).values
    chosen = scores > levels[:, None]
    if not bool(chosen.any()):
        raise ExciseError(f"no {k} neurons score higher than the others; lower k, or there is none for the concept")
    return chosen


def assign(scores: Iterable[Tensor]) -> list[int]:
    """Assign one neuron to each concept: greedily, in the concepts' order, the highest-scoring one still free.

    `scores` holds one `[m]` for each concept, averaged over the steps. Raises ExciseError for more concepts than
    neurons.
    """
    taken: list[int] = []
    for own in scores:
        if len(taken) >= len(own):
            raise ExciseError(f"there are more concepts than the {len(own)} neurons; use a wider SAE")
        free = own.clone()
        free[taken] = -torch.inf
        taken.append(int(free.argmax()))
    return taken
