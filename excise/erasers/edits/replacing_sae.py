"""An edit that moves the states of a concept's prompts to those of other prompts, behind an SAE neuron's gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from excise.erasers.choices import REPLACEMENT, REPLACEMENTS
from excise.erasers.edits.text_sae import TENSORS, SAEEdit
from excise.errors import ExciseError, shown
from excise.sites.site import Site

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class ReplacingSAEEdit(SAEEdit):
    """An `SAEEdit` that subtracts λ Σ_i z_i u_i: u_i is how far a code of 1 is from the states to move to.

    The decoder rows W_dec are kept to compare them with the SAE's, and are not subtracted. Raises ExciseError on
    construction as `SAEEdit` does, and for source="concept".
    """

    moves: Tensor = field(kw_only=True)
    """`[k, d]`: u, the states of the concept's prompts minus those of the other prompts, for each unit of a code."""
    replace_with: str = field(kw_only=True)
    """What the other prompts have in the concept's place: a word, or nothing."""

    kind: ClassVar[str] = "sae-replacing"
    SAVED: ClassVar[Mapping[str, type]] = {
        **{name: t for name, t in SAEEdit.SAVED.items() if name != "concept_codes"},
        "replace_with": str,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source != "prompt":
            raise ExciseError(f"source={self.source} cannot replace; only source=prompt can")
        if not REPLACEMENT.fullmatch(self.replace_with):
            raise ExciseError(f"replace_with cannot be {shown(self.replace_with)}; it is {REPLACEMENTS}")
        if self.moves.shape != self.W_dec.shape:
            raise ExciseError(f"moves has shape {tuple(self.moves.shape)}, not {tuple(self.W_dec.shape)}; fit it again")

    @classmethod
    def of(cls, edit: SAEEdit, moves: Tensor, replace_with: str) -> Self:
        """Return the edit with the same neurons and gate that moves states by `moves` `[k, d]`, with λ = 1."""
        parts: dict[str, Any] = {own.name: getattr(edit, own.name) for own in fields(SAEEdit)}
        return cls(**{**parts, "lam": 1.0}, moves=moves, replace_with=replace_with)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by field name, as saved."""
        return {**super().tensors(), "moves": self.moves}

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> Self:
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        tensors: dict[str, Any] = {name: take(name) for name in (*TENSORS, "moves")}
        return cls(site=site, **saved, **tensors)

    @property
    def saved(self) -> dict[str, Any]:
        """What is saved of it, except the Site and the tensors."""
        return {**self.options, "sae_digest": self.sae_digest}

    @property
    def options(self) -> dict[str, Any]:
        """Options other than the Site and the tensors, as json."""
        return {**super().options, "replace_with": self.replace_with}

    @property
    def description(self) -> str:
        """What the edit does to a model, for the eraser's card."""
        return (
            "moving its text encoder's states, where a neuron of a sparse autoencoder fires, to those of "
            f"“{self.replace_with}”"
        )

    @property
    def directions(self) -> Tensor:
        """What a code of 1 subtracts at a strength of 1, `[k, d]`."""
        return self.moves

    @property
    def instead(self) -> tuple[str, ...]:
        """For each neuron what takes the concept's place."""
        return (self.replace_with,) * len(self.indices)
