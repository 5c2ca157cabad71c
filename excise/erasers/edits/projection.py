"""Projection of words near a concept out of the text states that a U-Net reads (SAFREE)."""

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
    """A projection of words near a concept out of its subspace and into the subspace of the prompt (SAFREE)."""

    site: Site
    """The Site of the whole U-Net."""
    concept: Tensor
    """`[n, d]`: the EOS states of the concept's phrases."""
    alpha: float = 0.01
    """α: a word counts as near the concept if the prompt without it is farther from the concept by this share."""
    most: int = 10
    """Maximal number of steps that use the projected states, for a prompt that is all concept. 0 means all steps."""
    reattention: float = 1.0
    """Factor on low frequencies of skip connections that the projection made stronger. 1 leaves them alone."""
    midpoint: float = 5.333
    steepness: float = 2.5
    """Parameters of the sigmoid from the change of a prompt to the number of steps."""

    kind: ClassVar[str] = "projection"
    TENSORS: ClassVar[tuple[str, ...]] = ("concept",)
    description: ClassVar[str] = "a projection of its words out of the text states that its U-Net reads"
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
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        return cls(site, take("concept"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """Name and value of its strength."""
        return "alpha", self.alpha

    def projected(self, states: Tensor, without: Tensor) -> tuple[Tensor, Tensor]:
        """Return a prompt's projected `states` `[T, d]`, and `[n]` bool which of its n words were replaced.

        `without` `[n, d]` are the EOS states of the prompt without its i-th word. Word i is near the concept if
        |(I - P_C) without_i| exceeds the mean of the others' by a share α. Its state s becomes (I - P_C) P_I s, where
        P_C projects on the span of the concept's phrases and P_I on that of `without` (eqs. 2-5).
        """
        prompt, masked = states.double(), without.double()
        off = masked - masked @ projection(self.concept.double())
        distance = off.norm(dim=1)
        others = (distance.sum() - distance) / max(1, len(distance) - 1)
        hit = distance >= (1 + self.alpha) * others if len(distance) > 1 else off.new_ones(1, dtype=torch.bool)
        inside = prompt @ projection(masked)
        safe = inside - inside @ projection(self.concept.double())
        chosen = prompt.new_zeros(len(prompt), dtype=torch.bool)
        chosen[1 : 1 + len(hit)] = hit
        return torch.where(chosen[:, None], safe, prompt).to(states.dtype), hit

    def steps(self, states: Tensor, without: Tensor) -> int | None:
        """Return in how many first steps to use the projected states, or None for all (self-validating filtering,
        eq. 7).

        The number is round(most · σ(2k (10 z - t))) + 1. z is one minus the mean cosine between the words' states and
        their projections, with all of them projected. The step at which it ends counts too, as in the authors' code.
        """
        if self.most == 0:
            return None
        prompt, count = states.double(), len(without)
        inside = prompt @ projection(without.double())
        safe = inside - inside @ projection(self.concept.double())
        words = slice(0, count + 2)  # BOS and EOS among them
        z = 1 - F.cosine_similarity(prompt[words], safe[words], dim=1).mean().item()
        share = 1 / (1 + math.exp(-2 * self.steepness * (10 * z - self.midpoint)))
        return round(self.most * share) + 1


def projection(rows: Tensor) -> Tensor:
    """Return the orthogonal projection `[d, d]` on the span of `rows` `[n, d]`."""
    made: Tensor = torch.linalg.pinv(rows) @ rows
    return made
