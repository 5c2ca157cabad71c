"""Other weights in a layer: W + ΔW."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from excise.erasers.choices import Uncond
from excise.erasers.edits.base import Tensors
from excise.errors import ExciseError
from excise.sites.site import Site

if TYPE_CHECKING:
    pass
if TYPE_CHECKING:
    pass
if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False)
class WeightEdit(Tensors):
    """W + ΔW in a Linear or Conv2d of a denoiser, or a Linear of a text encoder.

    ΔW is `delta`, of W's shape; or `up @ down`, `[out, r] @ [r, in]`, where its rank r is small. Raises ExciseError on
    construction where neither or both are there, shapes do not fit or values are not finite.
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
    """With how many steps a picture has to be drawn that proves it, in a denoiser."""
    uncond: ClassVar[Uncond] = "same"
    """Other weights of a text encoder are those of every prompt."""

    def __post_init__(self) -> None:
        if (self.delta is None) == (self.up is None) or (self.up is None) != (self.down is None):
            raise ExciseError(f"a change of {self.site.key} is a whole matrix or a product of two; give one of these")
        self.check_finite()
        first = self.delta if self.up is None else self.up
        fits = self.up is None or (
            self.up.ndim == 2 and self.down is not None and self.down.shape[:1] == self.up.shape[1:]
        )
        if first is None or first.ndim not in (2, 4) or len(first) != self.site.width or not fits:
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.tensors().items())
            raise ExciseError(f"{shapes} is no change of {self.site}; they do not belong together")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> WeightEdit:
        """The edit whose `saved` options these are; `take` gives its tensors by name."""
        edit = cls(site, **{name: take(name) for name in (("up", "down") if saved["rank"] else ("delta",))})
        if edit.saved != saved:
            raise ExciseError(f"its rank is {edit.rank}, not {saved['rank']}")
        return edit

    @property
    def rank(self) -> int:
        """Of the product; 0 where it is a whole matrix."""
        return 0 if self.up is None else self.up.shape[1]

    @property
    def coefficient(self) -> tuple[str, float]:
        """What its strength is called, and how much it is: the norm of ΔW."""
        return "norm", float(self.change().norm())

    @property
    def description(self) -> str:
        """As its card says it."""
        return f"other weights in {{count}} layers of its {'text encoder' if self.site.part == 'text' else 'denoiser'}"

    def change(self) -> Tensor:
        """ΔW, float32."""
        if self.up is None or self.down is None:
            return self.delta.float()  # type: ignore[union-attr]
        return self.up.float() @ self.down.float()

    def of(self, weight: Tensor) -> Tensor:
        """ΔW, float32, for a layer's `weight`; a product's row is a convolution's kernel, flattened.

        Raises ExciseError where the weight has another shape.
        """
        made = self.change()
        if made.ndim == 2 and weight.ndim == 4 and made.shape == weight.flatten(1).shape:
            return made.reshape(weight.shape)
        if made.shape != weight.shape:
            raise ExciseError(f"{self.site.key} has weights {tuple(weight.shape)}, the edit {tuple(made.shape)}")
        return made


@dataclass(frozen=True, eq=False)
class PromptScaledEdit(WeightEdit):
    """W + g ΔW, where g is a prompt's `permeability` for the eraser's words."""

    kind: ClassVar[str] = "weights-by-prompt"
    description: ClassVar[str] = "other weights in {count} layers of its U-Net, the more so the nearer a prompt comes"


def permeability(states: Tensor, ids: Sequence[int], words: Sequence[tuple[Tensor, frozenset[int]]]) -> float:
    """How much of the concept is in a prompt: the larger of two likenesses to the nearest of its words.

    The cosine of the text states `[T, d]`, all positions in a row; and the share of the word's tokens that are in the
    prompt. `words` are each word's states and tokens. (SPM's facilitated transport, eq. 8, as in the authors' code;
    never below 0.)
    """
    own = states.double().flatten()
    near = [float(F.cosine_similarity(own, other.double().flatten(), dim=0)) for other, _ in words]
    shared = [len(tokens & set(ids)) / max(1, len(tokens)) for _, tokens in words]
    return max(0.0, *near, *shared)


@dataclass(frozen=True, eq=False)
class CopyEdit(WeightEdit):
    """W + ΔW in a copy of a U-Net's encoder, which a ModulationEdit beside it runs; the encoder itself keeps W."""

    kind: ClassVar[str] = "weights-of-copy"
    description: ClassVar[str] = "other weights in {count} layers of a copy of its U-Net's encoder"
