"""An edit of many concepts' SAE neurons at one Site, which one product reads for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

import torch
from torch import Tensor

from excise.erasers.edits.text_sae import TENSORS, SAEEdit, contribution
from excise.errors import ExciseError, InvalidSetting, Tampered, WrongModel
from excise.sites.site import Site

if TYPE_CHECKING:
    from typing_extensions import Self

MERGED = "merged"
"""The method of a merged eraser."""
ROWS_OF_NEURONS = ("indices", "W_enc", "b_enc", "W_dec")
SHARED = ("lead", "uncond")


@dataclass(frozen=True, eq=False)
class MergedSAEEdit(SAEEdit):
    """An `SAEEdit` with gate="whole" whose neurons have a strength each: λ_i times the common λ.

    Neuron i subtracts what it would subtract in an eraser of its own. Raises ExciseError on construction as `SAEEdit`
    does, and for another gate or source.
    """

    lams: Tensor = field(kw_only=True)
    """`[k]`: λ_i, at least 0."""

    kind: ClassVar[str] = "sae-merged"
    SAVED: ClassVar[Mapping[str, type]] = {name: t for name, t in SAEEdit.SAVED.items() if name != "concept_codes"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate != "whole" or self.source != "prompt":
            raise ExciseError(f"gate={self.gate}, source={self.source} cannot be merged; only gate=whole can")
        if self.lams.shape != self.indices.shape or not bool((self.lams >= 0).all() & torch.isfinite(self.lams).all()):
            raise ExciseError(f"lams must be {len(self.indices)} numbers of at least 0; merge the erasers again")

    @classmethod
    def of(cls, edits: Sequence[SAEEdit]) -> Self:
        """Merge edits at one Site.

        A neuron of several edits is turned down once: by the largest λ, at the lowest threshold, and scaled up to the
        largest typical code. All of them must satisfy `can_be_merged`. Raises InvalidSetting if their `lead` or
        `uncond` differ, WrongModel if their SAEs do, and Tampered if they have different rows of the same neuron.
        """
        first = edits[0]
        for edit in edits:
            if edit.sae_digest != first.sae_digest or not torch.equal(edit.b_pre, first.b_pre):
                raise WrongModel("erasers from different SAEs cannot be merged; fit them with one SAE")
            if any(getattr(edit, name) != getattr(first, name) for name in SHARED):
                raise InvalidSetting("erasers with different `lead` or `uncond` cannot be merged; fit them alike")
        lams = [edit.lam * (edit.lams if isinstance(edit, cls) else torch.ones(len(edit.indices))) for edit in edits]
        rows: dict[str, Any] = {name: torch.cat([getattr(edit, name) for edit in edits]) for name in ROWS_OF_NEURONS}
        indices, place = rows["indices"].unique(return_inverse=True)

        def least(values: Tensor) -> Tensor:
            return values.new_empty(len(indices)).scatter_reduce(0, place, values, "amin", include_self=False)

        at = least(torch.arange(len(place)))
        parts: dict[str, Any] = {name: tensor[at] for name, tensor in rows.items()}
        for name, tensor in rows.items():
            odd = (tensor != parts[name][place]).reshape(len(place), -1).any(1)
            if bool(odd.any()):
                raise Tampered(
                    f"two erasers have different rows of neuron {int(rows['indices'][odd][0])}; fit them again"
                )
        parts |= {
            "threshold": least(torch.cat([edit.threshold for edit in edits])),
            "typical": -least(-torch.cat([edit.typical for edit in edits])),
            "lams": -least(-torch.cat(lams)),
        }
        shared: dict[str, Any] = {name: getattr(first, name) for name in ("site", "b_pre", "sae_digest", *SHARED)}
        return cls(**parts, **shared, gate="whole")

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by field name, as saved."""
        return {**super().tensors(), "lams": self.lams}

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> Self:
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        tensors: dict[str, Any] = {name: take(name) for name in (*TENSORS, "lams")}
        return cls(site=site, **saved, **tensors)

    @property
    def saved(self) -> dict[str, Any]:
        """What is saved of it, except the Site and the tensors."""
        return {**self.options, "sae_digest": self.sae_digest}

    @property
    def coefficient(self) -> tuple[str, float]:
        """Name and value of the largest strength."""
        return "lambda", self.lam * float(self.lams.max())

    def written(self, z: Tensor, amount: float) -> Tensor | None:
        """Return what codes `z` `[B, T, k]` write, `[B, T, d]`, or None if no gate is open.

        Only the rows of neurons with a code are read. An attack needs the gradients of closed gates too.
        """
        lams, W_dec = self.lams.to(z.dtype), self.W_dec.to(z.dtype)
        if z.requires_grad:
            return contribution(lams * z, W_dec, amount)
        active = z.flatten(0, -2).any(0)
        if not bool(active.any()):
            return None
        return contribution(lams[active] * z[..., active], W_dec[active], amount)


def can_be_merged(edit: object) -> TypeGuard[SAEEdit]:
    """Whether an edit acts on neurons of a text encoder's SAE behind the gate of a whole prompt."""
    if not isinstance(edit, SAEEdit) or type(edit) not in (SAEEdit, MergedSAEEdit):
        return False
    return edit.gate == "whole" and edit.source == "prompt"


def parts_of(created: Mapping[str, Any]) -> list[Any]:
    """Return what a merged eraser's `created` says of its parts; nothing for other erasers."""
    parts = created.get("erasers")
    return parts if isinstance(parts, list) else []
