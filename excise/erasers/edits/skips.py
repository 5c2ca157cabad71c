"""Skip connections of a U-Net, modulated step by step (DuMo)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from excise.erasers.edits.base import Tensors
from excise.errors import ExciseError
from excise.sites.site import Site

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False)
class ModulationEdit(Tensors):
    """f_l ← f_l + α[n, l] (g_l - f_l) for skip connection l, n the bin of the timestep that is drawn.

    f_l is what the U-Net's encoder gives, g_l what its copy with other weights does. Raises ExciseError on construction
    where a coefficient is not between 0 and 1.
    """

    site: Site
    """Of the whole U-Net."""
    alpha: Tensor
    """α `[bins, l]`: timesteps from 0 on in bins of equal length, skip connections from the picture's side on."""
    timesteps: int
    """How many there are in all the bins, as the U-Net was trained with."""

    kind: ClassVar[str] = "modulation"
    TENSORS: ClassVar[tuple[str, ...]] = ("alpha",)
    description: ClassVar[str] = "skip connections that a copy of its U-Net's encoder modulates"
    SAVED: ClassVar[Mapping[str, type]] = {"timesteps": int}
    trial_steps: ClassVar[int] = 4

    def __post_init__(self) -> None:
        self.check_finite()
        if self.alpha.ndim != 2 or not self.alpha.numel() or self.site.part != "denoiser" or self.timesteps < 1:
            raise ExciseError(f"{tuple(self.alpha.shape)} at {self.site} are no coefficients [bins, skips] of a U-Net")
        if float(self.alpha.min()) < 0 or float(self.alpha.max()) > 1:
            raise ExciseError("coefficients of skip connections are between 0 and 1; fit it again")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> ModulationEdit:
        """The edit whose `saved` options these are; `take` gives its tensors by name."""
        return cls(site, take("alpha"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """What its strength is called, and how much it is: the mean."""
        return "alpha", float(self.alpha.float().mean())

    def at(self, timesteps: Tensor) -> Tensor:
        """`[B, l]`, float32: the coefficients at `timesteps` `[B]`."""
        alpha = self.alpha.to(timesteps.device).float()
        return alpha[bins_of(timesteps, len(alpha), self.timesteps)]


def bins_of(timesteps: Tensor, count: int, whole: int) -> Tensor:
    """Of each timestep, from 0 up to `whole`, which of `count` bins of equal length it is in."""
    return (timesteps.double() * count / whole).long().clamp(0, count - 1)
