"""Guidance that also leads away from a concept (SLD)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from excise.erasers.edits.base import Tensors
from excise.errors import ExciseError
from excise.sites.site import Site


def away(without: Tensor, prompt: Tensor, unsafe: Tensor, scale: float, threshold: float) -> Tensor:
    """Return μ ⊙ (ε_S - ε_∅), given the unconditional prediction ε_∅, the prompt's ε_p and the unsafe concept's ε_S.

    μ = min(1, s |ε_p - ε_S|) where ε_p - ε_S < λ, else 0. s is `scale`, λ is `threshold` (SLD, eqs. 4-6; the paper
    writes max(1, ...), the authors' code has the minimum).
    """
    apart = prompt - unsafe
    mu = torch.where(apart >= threshold, torch.zeros_like(apart), (apart.abs() * scale).clamp(max=1.0))
    return (unsafe - without) * mu


@dataclass(frozen=True, eq=False)
class GuidanceEdit(Tensors):
    """Safe guidance: ε_p ← ε_p - γ, where γ = `away` + s_m ν and ν ← β_m ν + (1 - β_m) γ from step to step.

    So guidance by a factor g, ε_∅ + g (ε_p - ε_∅), becomes ε_∅ + g (ε_p - γ - ε_∅) (SLD, eqs. 3, 7 and 8). Raises
    ExciseError on construction if shapes do not fit or values are impossible.
    """

    site: Site
    """The Site of the whole U-Net."""
    states: Tensor
    """`[T, d]`: text states of the unsafe concept."""
    scale: float
    """s: how quickly μ reaches 1."""
    threshold: float
    """λ."""
    warmup: int
    """Number of first steps without an edit, in which ν builds up."""
    momentum: float
    """s_m."""
    decay: float
    """β_m."""

    kind: ClassVar[str] = "guidance"
    TENSORS: ClassVar[tuple[str, ...]] = ("states",)
    description: ClassVar[str] = "guidance away from it in every step, by a third call of its U-Net"
    SAVED: ClassVar[Mapping[str, type]] = {
        "scale": float,
        "threshold": float,
        "warmup": int,
        "momentum": float,
        "decay": float,
    }

    def __post_init__(self) -> None:
        self.check_finite()
        if self.states.ndim != 2 or self.site.part != "denoiser":
            raise ExciseError(f"{tuple(self.states.shape)} at {self.site} are not text states [T, d] of a U-Net")
        if self.scale < 0 or self.warmup < 0 or self.momentum < 0 or not 0 <= self.decay <= 1:
            raise ExciseError("scale, warmup and momentum are at least 0, decay is between 0 and 1")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> GuidanceEdit:
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        return cls(site, take("states"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """Name and value of its strength."""
        return "scale", self.scale

    @property
    def trial_steps(self) -> int:
        """Number of steps of the generation that proves it. Only its first half is run."""
        return 2 * (self.warmup + 2)
