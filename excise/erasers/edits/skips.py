"""Modulation of a U-Net's skip connections, by timestep (DuMo)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from excise.erasers.edits.base import Tensors, widest
from excise.errors import ExciseError
from excise.sites.site import Site


@dataclass(frozen=True, eq=False)
class ModulationEdit(Tensors):
    """A modulation f_l ← f_l + α[n, l] (g_l - f_l) of skip connection l, with n the bin of the timestep.

    f_l is the output of the U-Net's encoder, g_l that of its copy with other weights. Raises ExciseError on
    construction if a coefficient is not between 0 and 1.
    """

    site: Site
    """The Site of the whole U-Net."""
    alpha: Tensor
    """α `[bins, l]`: bins of equal length from timestep 0, skip connections from the input side."""
    timesteps: int
    """Number of training timesteps, which all bins cover together."""

    kind: ClassVar[str] = "modulation"
    TENSORS: ClassVar[tuple[str, ...]] = ("alpha",)
    description: ClassVar[str] = "skip connections that a copy of its U-Net's encoder modulates"
    SAVED: ClassVar[Mapping[str, type]] = {"timesteps": int}
    trial_steps: ClassVar[int] = 4

    def __post_init__(self) -> None:
        self.check_finite()
        if self.alpha.ndim != 2 or not self.alpha.numel() or self.site.part != "denoiser" or self.timesteps < 1:
            raise ExciseError(f"{tuple(self.alpha.shape)} at {self.site} are not coefficients [bins, skips] of a U-Net")
        if float(self.alpha.min()) < 0 or float(self.alpha.max()) > 1:
            raise ExciseError("coefficients of skip connections must be between 0 and 1; fit it again")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> ModulationEdit:
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        return cls(site, take("alpha"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """Name and value of its strength, the mean coefficient."""
        return "alpha", float(self.alpha.float().mean())

    def at(self, timesteps: Tensor) -> Tensor:
        """Return the coefficients `[B, l]` at `timesteps` `[B]`, in float32."""
        alpha = self.alpha.to(timesteps.device).float()
        return alpha[bins_of(timesteps, len(alpha), self.timesteps)]


def bins_of(timesteps: Tensor, count: int, whole: int) -> Tensor:
    """Return, for each timestep from 0 to `whole`, the number of its bin among `count` of equal length."""
    return (timesteps.to(widest(timesteps.device)) * count / whole).long().clamp(0, count - 1)
