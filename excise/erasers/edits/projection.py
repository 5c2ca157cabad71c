"""Projection of what is near a concept out of what a U-Net reads: out of text states (SAFREE), or out of the values of
its cross-attention (AdaVD)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.erasers.edits.base import Tensors, widest
from excise.erasers.gates import passed
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
        prompt, masked, concept = (each.cpu().double() for each in (states, without, self.concept))  # not on MPS
        off = masked - masked @ projection(concept)
        distance = off.norm(dim=1)
        others = (distance.sum() - distance) / max(1, len(distance) - 1)
        hit = distance >= (1 + self.alpha) * others if len(distance) > 1 else off.new_ones(1, dtype=torch.bool)
        inside = prompt @ projection(masked)
        safe = inside - inside @ projection(concept)
        chosen = prompt.new_zeros(len(prompt), dtype=torch.bool)
        chosen[1 : 1 + len(hit)] = hit
        return torch.where(chosen[:, None], safe, prompt).to(states), hit

    def steps(self, states: Tensor, without: Tensor) -> int | None:
        """Return in how many first steps to use the projected states, or None for all (self-validating filtering,
        eq. 7).

        The number is round(most · σ(2k (10 z - t))) + 1. z is one minus the mean cosine between the words' states and
        their projections, with all of them projected. The step at which it ends counts too, as in the authors' code.
        """
        if self.most == 0:
            return None
        prompt, masked, concept = (each.cpu().double() for each in (states, without, self.concept))
        inside = prompt @ projection(masked)
        safe = inside - inside @ projection(concept)
        words = slice(0, len(without) + 2)  # BOS and EOS among them
        z = 1 - F.cosine_similarity(prompt[words], safe[words], dim=1).mean().item()
        share = 1 / (1 + math.exp(-2 * self.steepness * (10 * z - self.midpoint)))
        return round(self.most * share) + 1


def projection(rows: Tensor) -> Tensor:
    """Return the orthogonal projection `[d, d]` on the span of `rows` `[n, d]`."""
    made: Tensor = torch.linalg.pinv(rows) @ rows
    return made


@dataclass(frozen=True, eq=False)
class ValueEdit(Tensors):
    """A projection of a concept out of the values of one cross-attention, in tokens whose value is close to it (AdaVD).

    For a token's value v and the values v_i of the concept's n words,
        v ← v - Σ_k ⟨q_k, v⟩ / |q_k|² Σ_i L_ki σ(cos(v_i, v)) v_i,   σ(x) = s / (1 + exp(-p (x - ε)))
    where q = L V are the words' values, orthogonal to each other by Gram-Schmidt. For one word, that is
    v - σ(cos(v_1, v)) ⟨v_1, v⟩ / |v_1|² v_1. A σ below `floor` counts as exactly 0, so that a token far from all words
    keeps every bit. The first token, BOS, is left alone.

    Raises ExciseError on construction if shapes do not fit or values are impossible.
    """

    site: Site
    """The Linear that makes the values, attn2.to_v."""
    values: Tensor
    """`[n, d]`: the values of the concept's words."""
    scale: float = 2.0
    """s."""
    steepness: float = 100.0
    """p."""
    midpoint: float = 0.93
    """ε: the cosine at which σ is s / 2."""
    floor: float = 1e-3
    """A smaller σ counts as 0."""

    kind: ClassVar[str] = "values"
    TENSORS: ClassVar[tuple[str, ...]] = ("values",)
    description: ClassVar[str] = "a projection of its words out of the values of {count} cross-attentions of its U-Net"
    SAVED: ClassVar[Mapping[str, type]] = {"scale": float, "steepness": float, "midpoint": float, "floor": float}
    trial_steps: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self.check_finite()
        if self.site.part != "denoiser" or self.values.ndim != 2 or self.values.shape[1] != self.site.width:
            raise ExciseError(f"{tuple(self.values.shape)} are not words' values [n, d] at {self.site}")
        if not len(self.values) or not bool((self.values.norm(dim=1) > 0).all()):
            raise ExciseError("a projection of values needs at least one word, and none whose values are all zero")
        if min(self.scale, self.steepness, self.floor) < 0 or not -1 <= self.midpoint <= 1:
            raise ExciseError("scale, steepness and floor are at least 0, and the midpoint is a cosine from -1 to 1")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> ValueEdit:
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        return cls(site, take("values"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """Name and value of its strength."""
        return "scale", self.scale

    def delta(self, x: Tensor, strength: float = 1.0) -> Tensor | None:
        """Return what to subtract from values `x` `[B, T, d]`, in float32 or better, or None to leave every bit alone.

        Raises ExciseError if the width differs.
        """
        if strength == 0:
            return None
        if x.ndim != 3 or x.shape[-1] != self.site.width:
            raise ExciseError(f"{self.site.key} gave {tuple(x.shape)}, not [B, T, {self.site.width}]")
        with torch.autocast(x.device.type, enabled=False):
            v = x.to(torch.promote_types(x.dtype, torch.float32))
            words = self.values.to(v)
            near = F.cosine_similarity(v[:, :, None], words, dim=-1)
            sigma = self.scale * torch.sigmoid(self.steepness * (near - self.midpoint))
            weights = passed(sigma, sigma, sigma.new_tensor(self.floor), equal=True)
            mix, along = (each.to(v) for each in self._orthogonal)
            delta = torch.einsum("btk,ki,bti,id->btd", v @ along.T, mix, weights, words)
            return strength * torch.cat([torch.zeros_like(delta[:, :1]), delta[:, 1:]], 1)

    @cached_property
    def _orthogonal(self) -> tuple[Tensor, Tensor]:
        """L `[k, n]` and the rows q_k / |q_k|² `[k, d]`, in the widest dtype. A word in the others' span has no row."""
        made, rows = list[Tensor](), list[Tensor]()
        values = self.values.cpu().double()
        for row, value in zip(torch.eye(len(values), dtype=torch.float64), values, strict=True):
            for other, q in zip(rows, made, strict=True):
                row = row - (q @ value) / (q @ q) * other
            left = row @ values
            if float(left.norm()) > SPANNED * float(value.norm()):
                rows.append(row)
                made.append(left)
        q = torch.stack(made)
        there = self.values.device
        mix, along = torch.stack(rows), q / q.square().sum(1, keepdim=True)
        return mix.to(there, widest(there)), along.to(there, widest(there))


SPANNED = 1e-3
"""Of a word's value, the share outside of the other words' span below which it adds nothing to them."""
