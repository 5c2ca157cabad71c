"""Words near a concept, projected out of what a U-Net is told of a prompt (SAFREE)."""

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


@dataclass(frozen=True, eq=False)
class ProjectionEdit(Tensors):
    """Words near a concept are projected out of its subspace and into that of the prompt's other words (SAFREE)."""

    site: Site
    """Of the whole U-Net."""
    concept: Tensor
    """`[n, d]`: the concept's phrases, each as its EOS state."""
    alpha: float = 0.01
    """α: a word counts as the concept's where the prompt without it is farther from the concept by this share."""
    most: int = 10
    """Steps that the projected states are told at most, of a prompt that is all concept; 0: in all steps, always."""
    reattention: float = 1.0
    """What low frequencies are multiplied by in skip connections where they grew by the projection; 1: left alone."""
    midpoint: float = 5.333
    steepness: float = 2.5
    """Of the curve from how much a prompt is changed to how many steps."""

    kind: ClassVar[str] = "projection"
    TENSORS: ClassVar[tuple[str, ...]] = ("concept",)
    description: ClassVar[str] = "a projection of its words out of what its U-Net is told of a prompt"
    SAVED: ClassVar[Mapping[str, type]] = {
        "alpha": float,
        "most": int,
        "reattention": float,
        "midpoint": float,
        "steepness": float,
    }
    trial_steps: ClassVar[int] = 4

    def __post_init__(self) -> None:
        self.check_finite()
        if self.concept.ndim != 2 or not len(self.concept) or min(self.alpha, self.most, self.reattention) < 0:
            raise ExciseError("a projection needs phrases' states [n, d]; alpha, most and reattention at least 0")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> ProjectionEdit:
        """The edit whose `saved` options these are; `take` gives its tensors by name."""
        return cls(site, take("concept"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """What its strength is called, and how much it is."""
        return "alpha", self.alpha

    def projected(self, states: Tensor, without: Tensor) -> tuple[Tensor, Tensor]:
        """`[T, d]` of a prompt's `states` of that shape, and `[n]` which of its n words were replaced.

        `without` `[n, d]` are EOS states of the prompt without its i-th word. Word i is the concept's where
        |(I - P_C) without_i| exceeds the mean of the others' by a share α; its state s becomes (I - P_C) P_I s, where
        P_C projects on the span of the concept's phrases and P_I on that of `without` (eqs. 2-5).
        """
        own, masked = states.double(), without.double()
        off = masked - masked @ projection(self.concept.double())
        distance = off.norm(dim=1)
        others = (distance.sum() - distance) / max(1, len(distance) - 1)
        hit = distance >= (1 + self.alpha) * others if len(distance) > 1 else off.new_ones(1, dtype=torch.bool)
        inside = own @ projection(masked)
        safe = inside - inside @ projection(self.concept.double())
        chosen = own.new_zeros(len(own), dtype=torch.bool)
        chosen[1 : 1 + len(hit)] = hit
        return torch.where(chosen[:, None], safe, own).to(states.dtype), hit

    def steps(self, states: Tensor, without: Tensor) -> int | None:
        """In how many first steps the projected states are told (self-validating filtering, eq. 7).

        round(most · σ(2k (10 z - t))), z one minus the mean cosine between the words' states and what they become
        where all of them are projected; and the step at which that ends counts too, as in the authors' code.
        """
        if self.most == 0:
            return None
        own, count = states.double(), len(without)
        inside = own @ projection(without.double())
        safe = inside - inside @ projection(self.concept.double())
        words = slice(0, count + 2)  # BOS and EOS among them
        z = 1 - F.cosine_similarity(own[words], safe[words], dim=1).mean().item()
        share = 1 / (1 + math.exp(-2 * self.steepness * (10 * z - self.midpoint)))
        return round(self.most * share) + 1


def projection(rows: Tensor) -> Tensor:
    """`[d, d]`: the orthogonal projection on the span of `rows` `[n, d]`."""
    made: Tensor = torch.linalg.pinv(rows) @ rows
    return made
