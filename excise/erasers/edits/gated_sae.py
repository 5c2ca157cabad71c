"""An edit of SAE neurons that spares prompts which it would change only slightly (ItD's classifier)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from excise.erasers.edits.base import Branch
from excise.erasers.edits.text_sae import SAEEdit
from excise.erasers.gates import passed
from excise.errors import ExciseError


@dataclass(frozen=True, eq=False)
class GatedSAEEdit(SAEEdit):
    """An `SAEEdit` of prompts whose `change` is at least `floor`. Others keep every bit."""

    floor: float = 0.0

    kind: ClassVar[str] = "sae-gated"
    SAVED: ClassVar[Mapping[str, type]] = {**SAEEdit.SAVED, "floor": float}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.floor) and self.floor >= 0):
            raise ExciseError(f"floor is {self.floor}; it must be a number of at least 0")

    @property
    def options(self) -> dict[str, Any]:
        """Options other than the Site and the tensors, as json."""
        return {**super().options, "floor": float(self.floor)}

    def change(self, h: Tensor, sae: Any | None = None) -> Tensor:
        """Return `[B]`: the squared norm of what is subtracted from states `h` `[B, T, d]` at strength 1, averaged over
        positions."""
        delta = super().delta(h, sae=sae)
        return h.new_zeros(len(h)) if delta is None else delta.square().sum(-1).mean(1)

    def delta(
        self, h: Tensor, strength: float = 1.0, *, branch: Branch = "conditional", sae: Any | None = None
    ) -> Tensor | None:
        """Return the delta of `SAEEdit`, set to 0 in prompts that the gate spares."""
        delta = super().delta(h, strength, branch=branch, sae=sae)
        if delta is None:
            return None
        change = self.change(h, sae)[:, None, None]
        return passed(delta, change, change.new_tensor(self.floor), equal=True)
