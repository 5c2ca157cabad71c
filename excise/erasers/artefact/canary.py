"""How far an eraser moves its canary prompts, and how far it must, in whatever program it is attached."""

from __future__ import annotations

import math

from torch import Tensor

SHIFT_SHARE = 0.5
"""Share of the canary shift at fit time that a strict attach must reach."""


def shift(edited: Tensor, plain: Tensor) -> float:
    """Return |edited - plain| / |plain|. NaN and infinity count as 0, since they prove nothing."""
    a, b = edited.cpu().double(), plain.cpu().double()  # MPS has no float64
    relative = float((a - b).norm() / b.norm().clamp(min=1e-12))
    return relative if math.isfinite(relative) else 0.0
