"""Guidance away from a concept: of the prediction (SLD), or of text states by a classifier (CGCE)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
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


def logits(states: Tensor, keys: Tensor, values: Tensor, weights: Tensor, bias: Tensor | float) -> Tensor:
    """Return a classifier's logits `[B]` of text states `[B, T, d]`: cross-attention from n learned queries.

    With x a state, each query j attends to the states by softmax over t of ⟨keys_j, x_t⟩. The logit is
    Σ_j ⟨weights_j, gelu(values Σ_t a_jt x_t)⟩ + bias.

    Args:
        states: Text states, `[B, T, d]`.
        keys: The queries, mapped to states, `[n, d]`.
        values: `[h, d]`.
        weights: `[n, h]`.
        bias: The logit's bias.
    """
    attention = (states @ keys.T).softmax(1)
    read = torch.einsum("btn,btd->bnd", attention, states) @ values.T
    made: Tensor = (F.gelu(read) * weights).sum((1, 2)) + bias
    return made


@dataclass(frozen=True, eq=False)
class ClassifierEdit(Tensors):
    """Guidance of a prompt's text states away from a classifier's class, in prompts that it assigns to that class.

    With l the `logits` and p = 1 / (1 + exp(-l)), a prompt with p above `threshold` takes steps
    e ← e - η |e| ∇_e l / |∇_e l|, the direction of -∇_e log p, until l is at most `target`, or `most` of them. Norms
    are over all states. Any other prompt keeps every bit. Raises ExciseError on construction if shapes do not fit or
    values are impossible.
    """

    site: Site
    """The Site of the whole U-Net."""
    keys: Tensor
    """`[n, d]`."""
    values: Tensor
    """`[h, d]`."""
    weights: Tensor
    """`[n, h]`."""
    bias: float
    threshold: float = 0.5
    """p from which a prompt counts as the concept's."""
    target: float = 0.0
    """l down to which its states are moved."""
    step: float = 0.02
    """η: length of a step as a share of the states' norm."""
    most: int = 100
    """Most steps."""

    kind: ClassVar[str] = "classifier"
    TENSORS: ClassVar[tuple[str, ...]] = ("keys", "values", "weights")
    description: ClassVar[str] = "steps of the text states that its U-Net reads, in prompts that a classifier finds"
    SAVED: ClassVar[Mapping[str, type]] = {
        "bias": float,
        "threshold": float,
        "target": float,
        "step": float,
        "most": int,
    }
    trial_steps: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self.check_finite()
        shapes = [tuple(tensor.shape) for tensor in self.tensors().values()]
        fit = all(len(shape) == 2 and min(shape) > 0 for shape in shapes) and shapes[0][1] == shapes[1][1]
        if self.site.part != "denoiser" or not fit or shapes[2] != (shapes[0][0], shapes[1][0]):
            raise ExciseError(f"{shapes} are not keys [n, d], values [h, d] and weights [n, h] of a classifier")
        if not 0 < self.threshold < 1 or self.step <= 0 or not 0 < self.most <= MOST_STEPS:
            raise ExciseError(f"the threshold is between 0 and 1, step above 0, and most from 1 to {MOST_STEPS}")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> ClassifierEdit:
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        return cls(site, take("keys"), take("values"), take("weights"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """Name and value of its strength."""
        return "step", self.step

    def guided(self, states: Tensor) -> Tensor | None:
        """Return a prompt's guided `states` `[T, d]` in float32 or better, or None if p is not above the threshold.

        Raises ExciseError if the width differs.
        """
        if states.ndim != 2 or states.shape[1] != self.keys.shape[1]:
            raise ExciseError(
                f"the prompt has states {tuple(states.shape)}, the classifier's are {self.keys.shape[1]} wide"
            )
        e = states.detach().to(torch.promote_types(states.dtype, torch.float32))
        keys, values, weights = (tensor.to(e) for tensor in self.tensors().values())
        bound, moved = math.log(self.threshold / (1 - self.threshold)), False
        for _ in range(self.most):
            with torch.enable_grad():
                e.requires_grad_()
                logit = logits(e[None], keys, values, weights, self.bias)[0]
                (slope,) = torch.autograd.grad(logit, e)
            e, norm = e.detach(), slope.norm()
            if float(logit.detach()) <= bound or not float(norm) > 0:
                break
            bound, moved = min(bound, self.target), True
            e = e - self.step * e.norm() * slope / norm
        return e if moved else None


MOST_STEPS = 1000
"""Largest number of steps that a file may ask for."""
