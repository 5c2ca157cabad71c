"""Guidance of text states away from a concept that a detector sees in the picture while it is generated (STG)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.erasers.edits.base import Tensors
from excise.errors import ExciseError
from excise.sites.site import Site

SIZE = 64
"""Height and width, in pixels, of what a detector reads."""


def detected(pictures: Tensor, kernels: Sequence[Tensor], weights: Tensor, biases: Tensor) -> Tensor:
    """Return a detector's logits `[B]` of pictures `[B, 3, H, W]` in -1..1, scaled to `SIZE` by areas.

    Convolutions of stride 2 and padding 1 are each followed by a silu. The logit is ⟨weights, [maxima, means]⟩ + bias
    of the last one's n channels.

    Args:
        pictures: `[B, 3, H, W]`.
        kernels: Of each convolution, `[out, in, 3, 3]`.
        weights: `[2 n]`.
        biases: Of the convolutions, then of the logit, in one row.
    """
    x = F.interpolate(pictures, (SIZE, SIZE), mode="area")
    at = 0
    for kernel in kernels:
        x = F.silu(F.conv2d(x, kernel, biases[at : at + len(kernel)], stride=2, padding=1))
        at += len(kernel)
    made: Tensor = torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1) @ weights + biases[at]
    return made


def clean(noised: Tensor, predicted: Tensor, share: Tensor, kind: str) -> Tensor:
    """Return the latents x̂₀ that a prediction at the noised latents x_t stands for (DDIM, Song et al. 2021, eq. 12).

    Args:
        noised: x_t = √ᾱ x₀ + √(1 - ᾱ) ε, as the U-Net reads it.
        predicted: The U-Net's prediction, of the same shape.
        share: ᾱ.
        kind: What it predicts: "epsilon", "v_prediction" (√ᾱ ε - √(1 - ᾱ) x₀) or "sample".
    """
    if kind == "sample":
        return predicted
    if kind == "v_prediction":
        return share.sqrt() * noised - (1 - share).sqrt() * predicted
    return (noised - (1 - share).sqrt() * predicted) / share.sqrt()


def is_direction(slope: Tensor) -> Tensor:
    """Return whether each row of `[B, T, d]` is finite and not 0, `[B, 1, 1]` bool."""
    return torch.isfinite(slope).all((1, 2), keepdim=True) & (slope != 0).any((1, 2), keepdim=True)


@dataclass(frozen=True, eq=False)
class PictureEdit(Tensors):
    """Guidance of a picture's text states, c ← c - ρ |c| ∇_c l / |∇_c l|, at each step that shows the concept.

    l is the `detected` logit of the decoded x̂₀ that classifier-free guidance of weight `guidance` predicts with c. A
    step shows the concept if 1 / (1 + exp(-l)) is above `threshold`; it is then taken with the new c, from which the
    next ones go on. Only timesteps above `stop` up to `start` are looked at. A picture in which none shows it keeps
    every bit. Raises ExciseError on construction if shapes do not fit or values are impossible.
    """

    site: Site
    """The Site of the whole U-Net."""
    first: Tensor
    """`[a, 3, 3, 3]`: kernels of the detector's first convolution."""
    second: Tensor
    """`[b, a, 3, 3]`."""
    third: Tensor
    """`[n, b, 3, 3]`."""
    weights: Tensor
    """`[2 n]`."""
    biases: Tensor
    """`[a + b + n + 1]`."""
    threshold: float
    """Probability above which a step shows the concept."""
    rho: float
    """ρ: length of a step as a share of the states' norm."""
    guidance: float
    start: float
    stop: float

    kind: ClassVar[str] = "picture"
    TENSORS: ClassVar[tuple[str, ...]] = ("first", "second", "third", "weights", "biases")
    description: ClassVar[str] = "steps of the text states that its U-Net reads, in pictures that a detector finds"
    SAVED: ClassVar[Mapping[str, type]] = dict.fromkeys(("threshold", "rho", "guidance", "start", "stop"), float)
    trial_steps: ClassVar[int] = 10
    """Number of steps of the generation that proves it. Only its first half is run."""

    def __post_init__(self) -> None:
        self.check_finite()
        shapes = [tuple(tensor.shape) for tensor in self.tensors().values()]
        a, b, n = (shape[0] if shape else 0 for shape in shapes[:3])
        fit = [(a, 3, 3, 3), (b, a, 3, 3), (n, b, 3, 3), (2 * n,), (a + b + n + 1,)]
        if self.site.part != "denoiser" or shapes != fit or not min(a, b, n):
            raise ExciseError(f"{shapes} are not kernels, weights and biases of a detector at {self.site}")
        if not 0 < self.threshold < 1 or self.rho <= 0 or self.guidance < 0 or not self.stop < self.start:
            raise ExciseError("threshold is between 0 and 1, rho above 0, guidance at least 0, and stop below start")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> PictureEdit:
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        first, second, third, weights, biases = map(take, cls.TENSORS)
        return cls(site, first, second, third, weights, biases, **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """Name and value of its strength."""
        return "rho", self.rho

    def logits(self, pictures: Tensor) -> Tensor:
        """Return the detector's logits `[B]` of pictures `[B, 3, H, W]`, float32."""
        first, second, third, weights, biases = (tensor.float() for tensor in self.tensors().values())
        return detected(pictures.float(), (first, second, third), weights, biases)

    def shows(self, pictures: Tensor) -> list[int]:
        """Return the numbers of the pictures that show the concept. This waits for their device.

        Raises ExciseError for pictures that are not finite.
        """
        bound, logits = math.log(self.threshold / (1 - self.threshold)), self.logits(pictures)
        found: list[int] = (~(logits <= bound)).nonzero().flatten().tolist()
        if found and not torch.isfinite(logits[found]).all():
            raise ExciseError("a picture cannot be looked at while it is generated: it is not finite; use float32")
        return found

    def looks(self, timestep: float) -> bool:
        """Return whether the picture is looked at at this timestep."""
        return self.stop < timestep <= self.start

    def step(self, states: Tensor, slope: Tensor) -> Tensor:
        """Return the change of states `[B, T, d]`, float32, given ∇_c l, or a multiple of it.

        Raises ExciseError where that has no direction, as states that stay would show the concept.
        """
        if not bool(is_direction(slope).all()):
            raise ExciseError(
                "a picture shows the concept, but its detector's gradient is 0 or not finite; generate in float32"
            )
        # In float64, as squares of small or large gradients leave float32's range.
        own, down = states.cpu().double(), slope.cpu().double()  # MPS has no float64
        norms, long = (tensor.flatten(1).norm(dim=1)[:, None, None] for tensor in (own, down))
        made: Tensor = (-self.rho * norms * down / long).float().to(states.device)
        return made
