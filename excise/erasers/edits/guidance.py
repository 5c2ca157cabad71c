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
    """μ ⊙ (ε_S - ε_∅) of the predictions without a prompt, of the prompt and of what is unsafe, all of one shape.

    μ = min(1, s |ε_p - ε_S|) where ε_p - ε_S < λ, else 0: s is `scale`, λ `threshold`. (SLD, eqs. 4-6; the paper
    writes max(1, ...), its authors' code has the minimum.)
    """
    apart = prompt - unsafe
    mu = torch.where(apart >= threshold, torch.zeros_like(apart), (apart.abs() * scale).clamp(max=1.0))
    return (unsafe - without) * mu


@dataclass(frozen=True, eq=False)
class GuidanceEdit(Tensors):
    """ε_p ← ε_p - γ, where γ = `away` + s_m ν and ν ← β_m ν + (1 - β_m) γ from step to step.

    So guidance by a factor g, ε_∅ + g (ε_p - ε_∅), becomes ε_∅ + g (ε_p - γ - ε_∅) (SLD, eqs. 3, 7 and 8). Raises
    ExciseError on construction where shapes do not fit or values are impossible.
    """

    site: Site
    """Of the whole U-Net."""
    states: Tensor
    """`[T, d]`: what the U-Net is told of the unsafe concept."""
    scale: float
    """s: how soon μ is 1."""
    threshold: float
    """λ."""
    warmup: int
    """Steps that are left alone; ν is built up in them."""
    momentum: float
    """s_m."""
    decay: float
    """β_m."""

    kind: ClassVar[str] = "guidance"
    TENSORS: ClassVar[tuple[str, ...]] = ("states",)
    description: ClassVar[str] = "guidance away from it in every step, by a third run of its U-Net"
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
            raise ExciseError(f"{tuple(self.states.shape)} at {self.site} are no text states of a U-Net, [T, d]")
        if self.scale < 0 or self.warmup < 0 or self.momentum < 0 or not 0 <= self.decay <= 1:
            raise ExciseError("scale, warmup and momentum are at least 0, decay is between 0 and 1")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> GuidanceEdit:
        """The edit whose `saved` options these are; `take` gives its tensors by name."""
        return cls(site, take("states"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """What its strength is called, and how much it is."""
        return "scale", self.scale

    @property
    def trial_steps(self) -> int:
        """With how many steps a picture has to be drawn that proves it: its first half is."""
        return 2 * (self.warmup + 2)
