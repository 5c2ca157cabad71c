"""An edit of one denoiser block: replace the patches in which a neuron fires by others of the same picture (PER).

Patch Embedding Replacement is by Cassano et al., Look But Don't Touch with Sparse Autoencoders for Unlearning in
Diffusion Models, ECCV 2026 (arXiv:2606.31699).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from excise.erasers.edits.base import rows_at, widest
from excise.erasers.edits.block_sae import BlockEdit
from excise.erasers.gates import passed
from excise.errors import InvalidSetting

LARGEST_SEED = 2**32 - 1
_HIGHEST = 1e30
"""Stands for a gate at infinity where a difference from it must be a number."""


@lru_cache(maxsize=256)
def draws(seed: int, step: int, count: int) -> Tensor:
    """Return `count` numbers in [0, 1), float64, which depend on these arguments alone."""
    generator = torch.Generator("cpu").manual_seed((seed + step) % (LARGEST_SEED + 1))
    return torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")


def replacements(x: Tensor, detected: Tensor, drawn: Tensor) -> Tensor:
    """Return for each patch one of the same picture in which nothing was detected, `[B, N, d]`.

    Args:
        x: Patches, `[B, N, d]`.
        detected: Mask of the patches to replace, `[B, N]` bool.
        drawn: Numbers u in [0, 1), `[B or 1, N]`. Patch p takes the ⌊u_p n⌋-th of its picture's n other patches. In a
            picture without any, it takes one of all.
    """
    free = (~detected).sum(1, keepdim=True)
    order = detected.int().argsort(dim=1, stable=True)  # patches without a detection come first
    count = torch.where(free > 0, free, torch.full_like(free, detected.shape[1]))
    pick = (drawn.to(count.device) * count).long().clamp(max=count - 1)
    return x.gather(1, order.gather(1, pick)[..., None].expand_as(x))


@dataclass(frozen=True, eq=False)
class ReplacementEdit(BlockEdit):
    """A `BlockEdit` that replaces the patches in which a neuron is above its gate, and leaves codes alone.

    Detected patches are h_p ← h_q, where q is drawn at every step among the picture's patches that were not detected.
    Draws depend on `seed`, the step and the number of patches alone, so a picture is the same in any batch, on
    any device. Where more than the share `most` is detected, the SAE's b_pre takes their place: the others are too few
    to say what the picture is without the concept. Levels, γ and `compat` have no meaning here.

    Two such edits at one block cannot be attached together: each would put patches in place that the other detects.

    Raises ExciseError on construction as `BlockEdit` does, and for an impossible seed, share or `compat`.
    """

    seed: int = 0
    most: float = 0.9
    """Largest share of a picture's patches that are replaced by its other ones."""

    kind: ClassVar[str] = "block-replacement"
    SAVED: ClassVar[Mapping[str, type]] = {**BlockEdit.SAVED, "seed": int, "most": float}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compat:
            raise InvalidSetting("compat is about an edit of codes; leave it out where patches are replaced")
        if not 0 <= self.seed <= LARGEST_SEED or not 0 <= self.most <= 1:
            raise InvalidSetting(f"the seed is from 0 to {LARGEST_SEED}, and most is a share from 0 to 1")

    @property
    def options(self) -> dict[str, Any]:
        """Options other than the Site and the tensors, as json."""
        return {**super().options, "seed": self.seed, "most": float(self.most)}

    @property
    def coefficient(self) -> tuple[str, float]:
        """Name and value of its strength, the share of the way to the other patch: always the whole way."""
        return "replacement", 1.0

    def change(self, x: Tensor, z: Tensor, steps: Sequence[int], strength: float, sae: Any | None) -> Tensor:
        """Return `[B, N, d]`: strength · (h_p - h_q) in patches with a code above its gate, else exactly 0."""
        gate = rows_at(self.gate, steps)[:, None].to(z).clamp(max=_HIGHEST).expand_as(z)
        loudest = (z - gate).argmax(-1, keepdim=True)
        level, bound = z.gather(-1, loudest), gate.gather(-1, loudest)
        detected = (level > bound)[..., 0]
        patches = x.to(z.dtype)
        drawn = torch.stack([draws(self.seed, step, x.shape[1]) for step in steps])
        others = replacements(patches, detected, drawn)
        covered = detected.to(widest(detected.device)).mean(1) > self.most
        others = torch.where(covered[:, None, None], self.b_pre.to(z), others)
        return passed(strength * (patches - others), level, bound)
