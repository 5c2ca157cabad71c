"""Neurons that an edit of another neuron would disturb (OrthoEraser, Shi et al. 2026, arXiv:2603.11493).

The paper leaves alone the non-sensitive neurons that are "vulnerable to intervention". Its measure of that was not to
be had, so ours is
    c_j = a_j · max_i |cos(d_i, d_j)|
with i over the edited neurons, d the decoder rows, and a_j neuron j's mean code in the prompts to keep. The edited
neurons are silent there, or SNCE would not have chosen them, so a_j does not ask for both to fire.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.errors import ExciseError
from excise.neurons import PromptCodes


def coupling(neurons: Sequence[int], kept: Sequence[PromptCodes], W_dec: Tensor) -> Tensor:
    """Return every neuron's coupling c `[m]` with the edited `neurons`, in float64; 0 for these themselves.

    Args:
        neurons: The edited neurons.
        kept: Codes of the prompts to keep; positions that are not scored do not count.
        W_dec: The SAE's decoder rows, `[m, d]`.
    """
    total = torch.zeros(len(W_dec), dtype=torch.float64)
    for codes in kept:
        z = torch.where(codes.scored[..., None], codes.values.double(), 0.0)
        total.scatter_add_(0, codes.indices.flatten().long(), z.flatten())
    mean = total / max(1, sum(int(codes.scored.sum()) for codes in kept))
    unit = F.normalize(W_dec.detach().cpu().double(), dim=1)
    found: Tensor = mean * (unit @ unit[list(neurons)].T).abs().amax(1)
    found[list(neurons)] = 0
    return found


def coupled(neurons: Sequence[int], kept: Sequence[PromptCodes], W_dec: Tensor, n: int) -> tuple[int, ...]:
    """Return the n neurons with the largest `coupling`, or as many as have any; equal ones are ordered by index.

    Raises ExciseError if none has.
    """
    found = coupling(neurons, kept, W_dec)
    order = [int(i) for i in found.argsort(descending=True, stable=True)[:n] if found[i] > 0]
    if not order:
        raise ExciseError(
            f"no neuron is coupled with {', '.join(map(str, neurons))} in the prompts to keep; use ortho=0"
        )
    return tuple(order)
