"""Adapters: small networks after a denoiser's attention, whose output is added to the attention's (Receler)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.erasers.edits.base import Tensors
from excise.errors import ExciseError
from excise.sites.site import Site


def added(o: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Return what an adapter adds to patches `o` `[..., d]`: W_up gelu(W_down o + b_down) + b_up, of their shape.

    Args:
        o: The attention's output.
        down: W_down `[r, d]` and, as a last column, b_down: `[r, d + 1]`.
        up: W_up `[d, r]` and, as a last column, b_up: `[d, r + 1]`.
    """
    inner = F.gelu(F.linear(o, down[:, :-1], down[:, -1]))
    return F.linear(inner, up[:, :-1], up[:, -1])


@dataclass(frozen=True, eq=False)
class AdapterEdit(Tensors):
    """An edit o ← o + W_up gelu(W_down o + b_down) + b_up of every patch o of an attention's output.

    Raises ExciseError on construction if shapes do not fit or values are not finite.
    """

    site: Site
    """An attention of the denoiser, which returns `[B, N, d]`."""
    down: Tensor
    """`[r, d + 1]`: W_down, and b_down as its last column."""
    up: Tensor
    """`[d, r + 1]`: W_up, and b_up as its last column."""

    kind: ClassVar[str] = "adapter"
    TENSORS: ClassVar[tuple[str, ...]] = ("down", "up")
    SAVED: ClassVar[Mapping[str, type]] = {}
    description: ClassVar[str] = "small networks after {count} cross-attentions of its denoiser"
    trial_steps: ClassVar[int] = 2
    """Number of steps of the generation that proves it."""

    def __post_init__(self) -> None:
        self.check_finite()
        shapes = tuple(tuple(tensor.shape) for tensor in (self.down, self.up))
        width, rank = self.site.width, len(self.down) if self.down.ndim else 0
        if self.site.part != "denoiser" or not rank or shapes != ((rank, width + 1), (width, rank + 1)):
            raise ExciseError(f"{shapes} are not an adapter's [r, {width + 1}] and [{width}, r + 1] at {self.site}")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> AdapterEdit:
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        return cls(site, take("down"), take("up"))

    @property
    def coefficient(self) -> tuple[str, float]:
        """Name and value of its strength, the norm of W_up and b_up."""
        return "norm", float(self.up.float().norm())

    def delta(self, x: Tensor, strength: float = 1.0) -> Tensor | None:
        """Return what to subtract from patches `x` `[B, N, d]`, in float32 or better, or None to leave every bit alone.

        Raises ExciseError if the width differs.
        """
        if strength == 0:
            return None
        if x.ndim != 3 or x.shape[-1] != self.site.width:
            raise ExciseError(f"{self.site.key} gave {tuple(x.shape)}, not [B, N, {self.site.width}]")
        with torch.autocast(x.device.type, enabled=False):
            o = x.to(torch.promote_types(x.dtype, torch.float32))
            return -strength * added(o, self.down.to(o), self.up.to(o))
