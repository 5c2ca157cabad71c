"""Edits of a layer's weights: W + ΔW."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from excise.erasers.choices import Uncond
from excise.erasers.edits.base import Tensors
from excise.errors import ExciseError
from excise.sites.site import Site


@dataclass(frozen=True, eq=False)
class WeightEdit(Tensors):
    """An edit W + ΔW of a Linear or Conv2d of a denoiser, or a Linear of a text encoder.

    ΔW is `delta`, of W's shape, or `up @ down`, `[out, r] @ [r, in]`, with a small rank r. Raises ExciseError on
    construction if neither or both are given, shapes do not fit or values are not finite.
    """

    site: Site
    """Its width is W's first dimension."""
    delta: Tensor | None = None
    up: Tensor | None = None
    down: Tensor | None = None

    kind: ClassVar[str] = "weights"
    TENSORS: ClassVar[tuple[str, ...]] = ("delta", "up", "down")
    SAVED: ClassVar[Mapping[str, type]] = {"rank": int}
    trial_steps: ClassVar[int] = 2
    """Number of steps of the generation that proves it, in a denoiser."""
    uncond: ClassVar[Uncond] = "same"
    """Changed weights of a text encoder apply to both branches of guidance."""

    def __post_init__(self) -> None:
        if (self.delta is None) == (self.up is None) or (self.up is None) != (self.down is None):
            raise ExciseError(f"a change of {self.site.key} is a whole matrix or a product of two; give one of them")
        self.check_finite()
        first = self.delta if self.up is None else self.up
        fits = self.up is None or (
            self.up.ndim == 2 and self.down is not None and self.down.shape[:1] == self.up.shape[1:]
        )
        if first is None or first.ndim not in (2, 4) or len(first) != self.site.width or not fits:
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.tensors().items())
            raise ExciseError(f"{shapes} does not fit the weights of {self.site}; fit the eraser again")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> WeightEdit:
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        edit = cls(site, **{name: take(name) for name in (("up", "down") if saved["rank"] else ("delta",))})
        if edit.saved != saved:
            raise ExciseError(f"its rank is {edit.rank}, not {saved['rank']}")
        return edit

    @property
    def rank(self) -> int:
        """Rank of the product; 0 for a whole matrix."""
        return 0 if self.up is None else self.up.shape[1]

    @property
    def coefficient(self) -> tuple[str, float]:
        """Name and value of its strength, the norm of ΔW."""
        return "norm", float(self.change().norm())

    @property
    def description(self) -> str:
        """What the edit does to a model, for the eraser's card."""
        part = "text encoder" if self.site.part == "text" else "denoiser"
        return f"changed weights in {{count}} layers of its {part}"

    def change(self) -> Tensor:
        """Return ΔW in float32."""
        if self.up is None or self.down is None:
            return self.delta.float()  # type: ignore[union-attr]
        return self.up.float() @ self.down.float()

    def of(self, weight: Tensor) -> Tensor:
        """Return ΔW in float32, in the shape of a layer's `weight`. A matrix row is a convolution's flattened kernel.

        Raises ExciseError if the weight has another shape.
        """
        made = self.change()
        if made.ndim == 2 and weight.ndim == 4 and made.shape == weight.flatten(1).shape:
            return made.reshape(weight.shape)
        if made.shape != weight.shape:
            raise ExciseError(f"{self.site.key} has weights {tuple(weight.shape)}, the edit {tuple(made.shape)}")
        return made


@dataclass(frozen=True, eq=False)
class PromptScaledEdit(WeightEdit):
    """An edit W + g ΔW, where g is a prompt's `permeability` for the eraser's words."""

    kind: ClassVar[str] = "weights-by-prompt"
    description: ClassVar[str] = "changed weights in {count} layers of its U-Net, scaled by how close a prompt comes"


def permeability(states: Tensor, ids: Sequence[int], words: Sequence[tuple[Tensor, frozenset[int]]]) -> float:
    """Return how close a prompt comes to the concept, from 0 to 1 (SPM's facilitated transport, eq. 8, as in the
    authors' code).

    It is the largest of two similarities to each word: the cosine of the text states `[T, d]`, flattened, and the share
    of the word's tokens that are in the prompt.

    Args:
        states: Text states of the prompt, `[T, d]`.
        ids: Token ids of the prompt.
        words: Text states and token ids of each of the concept's words.
    """
    prompt = states.cpu().double().flatten()  # MPS has no float64
    near = [float(F.cosine_similarity(prompt, word.cpu().double().flatten(), dim=0)) for word, _ in words]
    shared = [len(tokens & set(ids)) / max(1, len(tokens)) for _, tokens in words]
    return max(0.0, *near, *shared)


@dataclass(frozen=True, eq=False)
class CopyEdit(WeightEdit):
    """An edit W + ΔW of a copy of a U-Net's encoder, which a ModulationEdit runs. The encoder itself keeps W."""

    kind: ClassVar[str] = "weights-of-copy"
    description: ClassVar[str] = "changed weights in {count} layers of a copy of its U-Net's encoder"
