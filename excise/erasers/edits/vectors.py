"""Directions that are added to what a module gives: to a text encoder's states (Concept Steerers), or taken out of the
features of a denoiser's cross-attention where they point that way (CASteer)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from excise.erasers.choices import Uncond
from excise.erasers.edits.base import Branch, StepInfo, Tensors
from excise.erasers.edits.sae_rows import check_choices
from excise.errors import ExciseError
from excise.sites.site import Site


@dataclass(frozen=True, eq=False)
class VectorEdit(Tensors):
    """h ← h - λ v at a layer of a text encoder: one vector a position, the same for every prompt.

    Raises ExciseError on construction where shapes do not fit or values are impossible.
    """

    site: Site
    vectors: Tensor
    """`[T, d]`."""
    lam: float = 1.0
    """λ."""
    uncond: Uncond = "none"
    """The unconditional branch: left alone, edited alike, or with the opposite sign."""

    kind: ClassVar[str] = "vector"
    TENSORS: ClassVar[tuple[str, ...]] = ("vectors",)
    SAVED: ClassVar[Mapping[str, type]] = {"lam": float, "uncond": str}
    description: ClassVar[str] = "a vector that is subtracted from what its text encoder says of every prompt"

    def __post_init__(self) -> None:
        self.check_finite()
        check_choices(self, {"uncond": get_args(Uncond)})
        if self.site.part != "text" or self.vectors.ndim != 2 or self.vectors.shape[1] != self.site.width:
            raise ExciseError(f"{tuple(self.vectors.shape)} are no vectors [T, d] of {self.site}")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> VectorEdit:
        """The edit whose `saved` options these are; `take` gives its tensors by name."""
        return cls(site, take("vectors"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """What its strength is called, and how much it is."""
        return "lambda", self.lam

    def delta(
        self, h: Tensor, strength: float = 1.0, *, branch: Branch = "conditional", sae: Any | None = None
    ) -> Tensor | None:
        """What is subtracted from states `h` `[B, T, d]`, of that shape; None where every bit is left alone.

        Raises ExciseError for prompts of another length than the vectors'.
        """
        amount = strength * self.lam
        if branch == "unconditional":
            amount *= {"none": 0.0, "same": 1.0, "flip": -1.0}[self.uncond]
        if amount == 0:
            return None
        if h.shape[1:] != self.vectors.shape:
            raise ExciseError(
                f"the prompt has states {tuple(h.shape[1:])}, the eraser's vectors {tuple(self.vectors.shape)}; it "
                "works with prompts that are padded to one length only"
            )
        return (amount * self.vectors.to(torch.promote_types(h.dtype, torch.float32))).expand(h.shape)


@dataclass(frozen=True, eq=False)
class DirectionEdit(Tensors):
    """h ← h - β max(⟨s_t, h⟩, 0) s_t for every patch h of a block's output, s_t of length 1 at step t.

    β = 1 takes the direction out, β = 2 turns it round. Raises ExciseError on construction where shapes do not fit or
    values are impossible.
    """

    site: Site
    """A module of the denoiser that gives `[B, N, d]`."""
    directions: Tensor
    """`[S, d]`."""
    timesteps: Tensor
    """`[S]`: what the denoiser was told at each step when they were measured, falling."""
    beta: float = 2.0
    """β."""

    kind: ClassVar[str] = "direction"
    TENSORS: ClassVar[tuple[str, ...]] = ("directions", "timesteps")
    SAVED: ClassVar[Mapping[str, type]] = {"beta": float}
    description: ClassVar[str] = "a direction that is taken out of {count} layers of its denoiser, step by step"

    def __post_init__(self) -> None:
        self.check_finite()
        steps = len(self.timesteps)
        if self.site.part != "denoiser" or tuple(self.directions.shape) != (steps, self.site.width) or not steps:
            raise ExciseError(
                f"{tuple(self.directions.shape)} and {tuple(self.timesteps.shape)} are no directions [S, d] with "
                f"their timesteps [S] at {self.site}"
            )
        if not bool((self.timesteps.diff() < 0).all()):
            raise ExciseError("timesteps have to fall from step to step")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> DirectionEdit:
        """The edit whose `saved` options these are; `take` gives its tensors by name."""
        return cls(site, take("directions"), take("timesteps"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """What its strength is called, and how much it is."""
        return "beta", self.beta

    @property
    def trial_steps(self) -> int:
        """With how many steps a picture has to be drawn that proves it."""
        return len(self.timesteps)

    def delta(self, x: Tensor, strength: float = 1.0, *, step: StepInfo, **others: Any) -> Tensor | None:
        """What is subtracted from patches `x` `[B, N, d]`, float32 or better; None where every bit is left alone.

        At a timestep that was not measured the nearest one's direction counts. Raises ExciseError for another width.
        """
        if x.ndim != 3 or x.shape[-1] != self.site.width:
            raise ExciseError(f"{self.site.key} gave {tuple(x.shape)}, not [B, N, {self.site.width}]")
        if strength == 0:
            return None
        at = torch.tensor(step.timesteps, device=self.timesteps.device, dtype=self.timesteps.dtype)
        near = (self.timesteps[None] - at[:, None]).abs().argmin(1)
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(x.dtype, torch.float32)
            s = self.directions[near].to(dtype)[:, None]  # [B or 1, 1, d]
            along = (x.to(dtype) * s).sum(-1, keepdim=True).clamp(min=0)
            return strength * self.beta * along * s
