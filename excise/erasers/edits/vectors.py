"""Edits by directions: subtracted from a text encoder's states (Concept Steerers), or projected out of them (LEACE), or
out of the features of a denoiser's cross-attention, always (CASteer) or in images that show the concept (the same
behind a gate)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from excise.erasers.choices import Uncond
from excise.erasers.edits.base import Branch, StepInfo, Tensors, rows_at
from excise.erasers.edits.block_sae import OpenGates
from excise.erasers.edits.sae_rows import check_choices
from excise.erasers.gates import surrogate
from excise.errors import ExciseError
from excise.sites.site import Site


@dataclass(frozen=True, eq=False)
class VectorEdit(Tensors):
    """An edit h ← h - λ v at a layer of a text encoder. There is one vector for each position, the same for all
    prompts.

    Raises ExciseError on construction if shapes do not fit or values are impossible.
    """

    site: Site
    vectors: Tensor
    """`[T, d]`."""
    lam: float = 1.0
    """λ."""
    uncond: Uncond = "none"
    """How the unconditional branch is edited: "none", "same" (like prompts), or "flip" (with the opposite sign)."""

    kind: ClassVar[str] = "vector"
    text_only: ClassVar[bool] = True
    TENSORS: ClassVar[tuple[str, ...]] = ("vectors",)
    SAVED: ClassVar[Mapping[str, type]] = {"lam": float, "uncond": str}
    description: ClassVar[str] = "a vector that is subtracted from its text encoder's states of every prompt"

    def __post_init__(self) -> None:
        self.check_finite()
        check_choices(self, {"uncond": get_args(Uncond)})
        if self.site.part != "text" or self.vectors.ndim != 2 or self.vectors.shape[1] != self.site.width:
            raise ExciseError(f"{tuple(self.vectors.shape)} are not vectors [T, d] of {self.site}")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> VectorEdit:
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        return cls(site, take("vectors"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """Name and value of its strength."""
        return "lambda", self.lam

    def delta(
        self, h: Tensor, strength: float = 1.0, *, branch: Branch = "conditional", sae: Any | None = None
    ) -> Tensor | None:
        """Return what to subtract from states `h` `[B, T, d]`, or None to leave every bit alone.

        Raises ExciseError if the prompts have another length than the vectors.
        """
        amount = strength * self.lam
        if branch == "unconditional":
            amount *= {"none": 0.0, "same": 1.0, "flip": -1.0}[self.uncond]
        if amount == 0:
            return None
        if h.shape[1:] != self.vectors.shape:
            raise ExciseError(
                f"the prompt has states {tuple(h.shape[1:])}, the eraser's vectors {tuple(self.vectors.shape)}; pad "
                "all prompts to one length"
            )
        return (amount * self.vectors.to(torch.promote_types(h.dtype, torch.float32))).expand(h.shape)


@dataclass(frozen=True, eq=False)
class AffineEdit(Tensors):
    """An edit h ← h - ⟨v, h - μ⟩ u at a layer of a text encoder, in every state of every prompt but the first ones.

    Raises ExciseError on construction if shapes do not fit or values are impossible.
    """

    site: Site
    mean: Tensor
    """μ `[d]`."""
    read: Tensor
    """v `[d]`."""
    write: Tensor
    """u `[d]`."""
    lead: int = 0
    """Number of first states that are left alone: 1 where they do not depend on the prompt (a causal encoder's BOS)."""

    kind: ClassVar[str] = "affine"
    text_only: ClassVar[bool] = True
    TENSORS: ClassVar[tuple[str, ...]] = ("mean", "read", "write")
    SAVED: ClassVar[Mapping[str, type]] = {"lead": int}
    description: ClassVar[str] = "a direction that is projected out of its text encoder's states of every prompt"
    uncond: ClassVar[Uncond] = "same"

    def __post_init__(self) -> None:
        self.check_finite()
        shapes = {tuple(tensor.shape) for tensor in self.tensors().values()}
        if self.site.part != "text" or shapes != {(self.site.width,)} or self.lead < 0:
            raise ExciseError(f"{sorted(shapes)} are not three vectors [{self.site.width}] of {self.site}, or lead < 0")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> AffineEdit:
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        return cls(site, take("mean"), take("read"), take("write"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """Name and value of its strength, the length of u."""
        return "norm", float(self.write.norm())

    def delta(
        self, h: Tensor, strength: float = 1.0, *, branch: Branch = "conditional", sae: Any | None = None
    ) -> Tensor | None:
        """Return what to subtract from states `h` `[B, T, d]`, or None to leave every bit alone."""
        if strength == 0:
            return None
        mean, read, write = (each.to(torch.promote_types(h.dtype, torch.float32)) for each in self.tensors().values())
        along = ((h.to(mean) - mean) @ read)[..., None]
        kept = torch.arange(h.shape[1], device=h.device)[:, None] < self.lead
        return strength * torch.where(kept, torch.zeros_like(along), along) * write


@dataclass(frozen=True, eq=False)
class DirectionEdit(Tensors):
    """An edit h ← h - β max(⟨s_t, h⟩, 0) s_t of every patch h of a block's output, with s_t of length 1 at step t.

    β = 1 removes the direction, β = 2 reverses it. Raises ExciseError on construction if shapes do not fit or
    values are impossible.
    """

    site: Site
    """A module of the denoiser that returns `[B, N, d]`."""
    directions: Tensor
    """`[S, d]`."""
    timesteps: Tensor
    """`[S]`: the timesteps at which they were measured, decreasing."""
    beta: float = 2.0
    """β."""

    kind: ClassVar[str] = "direction"
    TENSORS: ClassVar[tuple[str, ...]] = ("directions", "timesteps")
    SAVED: ClassVar[Mapping[str, type]] = {"beta": float}
    description: ClassVar[str] = "a direction that is removed from {count} layers of its denoiser at every step"

    def __post_init__(self) -> None:
        self.check_finite()
        steps = len(self.timesteps)
        if self.site.part != "denoiser" or tuple(self.directions.shape) != (steps, self.site.width) or not steps:
            raise ExciseError(
                f"{tuple(self.directions.shape)} and {tuple(self.timesteps.shape)} are not directions [S, d] with "
                f"their timesteps [S] at {self.site}"
            )
        if not bool((self.timesteps.diff() < 0).all()):
            raise ExciseError("timesteps must decrease from step to step")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> DirectionEdit:
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        return cls(site, take("directions"), take("timesteps"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """Name and value of its strength."""
        return "beta", self.beta

    @property
    def trial_steps(self) -> int:
        """Number of steps of the generation that proves it."""
        return len(self.timesteps)

    @cached_property
    def known_timesteps(self) -> list[float]:
        """Its timesteps as numbers, read from the device once."""
        found: list[float] = self.timesteps.tolist()
        return found

    def delta(self, x: Tensor, strength: float = 1.0, *, step: StepInfo, **others: Any) -> Tensor | None:
        """Return what to subtract from patches `x` `[B, N, d]`, in float32 or better, or None to leave every bit alone.

        At a timestep that was not measured, the nearest one's direction is used. Raises ExciseError if the width
        differs.
        """
        if strength == 0:
            return None
        with torch.autocast(x.device.type, enabled=False):
            along, s, _ = self.read(x, step)
            return strength * self.beta * along.clamp(min=0) * s

    def read(self, x: Tensor, step: StepInfo) -> tuple[Tensor, Tensor, list[int]]:
        """Return ⟨s, x⟩ `[B, N, 1]` and s `[B or 1, 1, d]` in float32 or better, and the rows of the tables.

        Raises ExciseError if the width differs.
        """
        if x.ndim != 3 or x.shape[-1] != self.site.width:
            raise ExciseError(f"{self.site.key} gave {tuple(x.shape)}, not [B, N, {self.site.width}]")
        known = self.known_timesteps
        near = [min(range(len(known)), key=lambda n: abs(known[n] - timestep)) for timestep in step.timesteps]
        dtype = torch.promote_types(x.dtype, torch.float32)
        s = rows_at(self.directions, near).to(dtype)[:, None]
        return (x.to(dtype) * s).sum(-1, keepdim=True), s, near


@dataclass(frozen=True, eq=False)
class GatedDirectionEdit(DirectionEdit):
    """A `DirectionEdit` of those images only in which the direction was above its threshold at one of the blocks.

    An image's gate opens at the first block and step where some patch has ⟨s_t, h⟩ > τ_t. It then stays open, at this
    block and the later ones, until the image is finished. An image whose gate never opens keeps every bit. Raises
    ExciseError on construction if shapes do not fit or values are impossible.
    """

    thresholds: Tensor = field(kw_only=True)
    """`[S]`: τ, positive."""

    kind: ClassVar[str] = "gated-direction"
    TENSORS: ClassVar[tuple[str, ...]] = (*DirectionEdit.TENSORS, "thresholds")
    description: ClassVar[str] = (
        "a direction that is removed from {count} layers of its denoiser, in images that show the concept"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.thresholds.shape != self.timesteps.shape or not bool((self.thresholds > 0).all()):
            raise ExciseError(f"thresholds must be {len(self.timesteps)} positive numbers, one for each step")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> GatedDirectionEdit:
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        return cls(site, take("directions"), take("timesteps"), thresholds=take("thresholds"), **saved)

    def delta(
        self,
        x: Tensor,
        strength: float = 1.0,
        *,
        step: StepInfo,
        opened: OpenGates | None = None,
        **others: Any,
    ) -> Tensor | None:
        """Return what to subtract from patches `x` `[B, N, d]`, in float32 or better, or None to leave every bit alone.

        `opened` remembers open gates from block to block and from step to step. Raises ExciseError if the width
        differs.
        """
        if strength == 0:
            return None
        with torch.autocast(x.device.type, enabled=False):
            along, s, near = self.read(x, step)
            bound = rows_at(self.thresholds, near).to(along)[:, None, None]
            level = along.amax(1, keepdim=True)
            mask = (level > bound)[:, 0]
            mask = mask if opened is None else opened.across(mask, step)
            removed = along.clamp(min=0)
            gated = torch.where(mask[:, None], removed, torch.zeros_like(removed))
            return strength * self.beta * surrogate(gated, removed, level, bound) * s
