"""An edit of one text-encoder Site that leaves what other neurons write alone (OrthoEraser)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from excise.erasers.edits.projection import projection
from excise.erasers.edits.text_sae import SAEEdit
from excise.errors import ExciseError, NotFound
from excise.sites.site import Site

if TYPE_CHECKING:
    from typing_extensions import Self

LEAST_LEFT = 1e-3
"""Length of a projected direction, as a share of the neuron's, below which nothing is left to subtract."""
ROUNDING = 1e-4
"""Largest difference of a projected direction from one that another machine computes from the same SAE, as a share of
its length."""


def orthogonal(rows: Tensor, kept: Tensor) -> Tensor:
    """Return P⊥ d of each of `rows` `[k, d]`, with no part along any of `kept` `[n, d]`, in the rows' dtype.

    P⊥ = I - D_K (D_Kᵀ D_K)⁻¹ D_Kᵀ, with the kept rows as D_K's columns (OrthoEraser, Shi et al. 2026,
    arXiv:2603.11493). For rows that depend on each other, the inverse is a pseudo-inverse. Computed in float64.
    """
    exact = rows.double()
    return (exact - exact @ projection(kept.double())).to(rows.dtype)


@dataclass(frozen=True, eq=False)
class OrthogonalSAEEdit(SAEEdit):
    """An `SAEEdit` whose W_dec is `orthogonal` to the decoder rows of other neurons, which it so leaves alone.

    Codes and gates are those of an `SAEEdit`. Raises ExciseError on construction as it does, and for impossible
    neurons in `coupled`.
    """

    coupled: tuple[int, ...] = ()
    """Indices in the SAE of the neurons that are left alone, K."""

    kind: ClassVar[str] = "sae-orthogonal"
    SAVED: ClassVar[Mapping[str, type]] = {**SAEEdit.SAVED, "coupled": list}

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "coupled", tuple(self.coupled))  # json has lists
        known = [number for number in self.coupled if type(number) is int and number >= 0]
        if not known or len({*known, *self.neurons}) != len(self.coupled) + len(self.neurons):
            raise ExciseError("coupled neurons are named once each, by numbers of at least 0, and none is edited")

    @classmethod
    def from_sae(cls, sae: Any, site: Site, indices: list[int], **options: Any) -> Self:
        """Create an edit as `SAEEdit.from_sae` does, and project its directions.

        Raises ExciseError if the SAE has no such coupled neuron, or nothing is left of a direction.
        """
        coupled = list(options.get("coupled", ()))
        if bad := [i for i in coupled if not 0 <= i < len(sae.W_dec)]:
            raise NotFound(f"the SAE has {len(sae.W_dec)} neurons, numbered from 0; there is no {bad[0]}")
        raw = super().from_sae(sae, site, indices, **options)
        made = replace(raw, W_dec=orthogonal(raw.W_dec, sae.W_dec[coupled].detach().cpu()))
        for neuron, share in zip(indices, made.left(raw.W_dec), strict=True):
            if share < LEAST_LEFT:
                raise ExciseError(
                    f"what neuron {neuron} writes lies within what {len(coupled)} coupled ones do; lower ortho"
                )
        return made

    def left(self, rows: Tensor) -> list[float]:
        """Return the length of each direction as a share of that of the neuron's own, of `rows` `[k, d]`."""
        shares: list[float] = (self.W_dec.norm(dim=1) / rows.norm(dim=1).clamp(min=1e-12)).tolist()
        return shares

    @property
    def options(self) -> dict[str, Any]:
        """Options other than the Site and the tensors, as json."""
        return {**super().options, "coupled": list(self.coupled)}

    def holds(self, name: str, wanted: Tensor, W_dec: Tensor) -> bool:
        """Whether tensor `name` is `wanted`, or its projection, of an SAE with decoder `W_dec` `[m, d]`."""
        if name != "W_dec":
            return super().holds(name, wanted, W_dec)
        if max(self.coupled) >= len(W_dec) or len(self.coupled) >= W_dec.shape[1]:
            return False
        own, made = self.W_dec.cpu(), orthogonal(wanted, W_dec[list(self.coupled)])
        left, off, whole = (rows.norm(dim=1) for rows in (made, own - made, wanted))
        return bool(((left >= LEAST_LEFT * whole) & (off <= ROUNDING * left)).all())
