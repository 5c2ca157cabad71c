"""An edit of many concepts' SAE neurons at one Site, which one product reads for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

import torch
from torch import Tensor

from excise.erasers.choices import REPLACEMENT, REPLACEMENTS
from excise.erasers.edits.replacing_sae import ReplacingSAEEdit
from excise.erasers.edits.text_sae import TENSORS, SAEEdit, contribution
from excise.errors import ExciseError, InvalidSetting, Tampered, WrongModel, shown
from excise.notebook import listed
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

    @staticmethod
    def of(edits: Sequence[SAEEdit]) -> MergedSAEEdit:
        """Merge edits at one Site, into a `MergedReplacingEdit` if one of them moves states to others.

        A neuron of several edits acts once: it moves states as the first edit does that replaces with it, or else is
        turned down; an edit with λ = 0 comes last. It does so by the largest λ, and scaled up to the largest typical
        code, of the edits with the same word that subtract the same; at the lowest threshold of all. All edits must
        satisfy `can_be_merged`. Raises InvalidSetting if their `lead` or `uncond` differ, WrongModel if their SAEs do,
        and Tampered if they have different rows of the same neuron.
        """
        first = edits[0]
        for edit in edits:
            if edit.sae_digest != first.sae_digest or not torch.equal(edit.b_pre, first.b_pre):
                raise WrongModel("erasers from different SAEs cannot be merged; fit them with one SAE")
            if any(getattr(edit, name) != getattr(first, name) for name in SHARED):
                raise InvalidSetting("erasers with different `lead` or `uncond` cannot be merged; fit them alike")
        lams = torch.cat([edit.lam * getattr(edit, "lams", torch.ones(len(edit.indices))) for edit in edits])
        taken = torch.cat([edit.directions for edit in edits])
        words = [word for edit in edits for word in edit.instead]
        rows: dict[str, Any] = {name: torch.cat([getattr(edit, name) for edit in edits]) for name in ROWS_OF_NEURONS}
        indices, place = rows["indices"].unique(return_inverse=True)

        def least(values: Tensor) -> Tensor:
            return values.new_empty(len(indices)).scatter_reduce(0, place, values, "amin", include_self=False)

        turned_down, off = torch.tensor([not word for word in words]), lams == 0
        at = least(torch.arange(len(place)) + len(place) * (turned_down + 2 * off)) % len(place)
        number = {word: n for n, word in enumerate(dict.fromkeys(words))}
        named = torch.tensor([number[word] for word in words])
        alike = (taken == taken[at][place]).all(1) & (named == named[at][place])
        typical = torch.cat([edit.typical for edit in edits])
        parts: dict[str, Any] = {name: tensor[at] for name, tensor in rows.items()}
        for name, tensor in rows.items():
            odd = (tensor != parts[name][place]).reshape(len(place), -1).any(1)
            if bool(odd.any()):
                raise Tampered(
                    f"two erasers have different rows of neuron {int(rows['indices'][odd][0])}; fit them again"
                )
        parts |= {
            "threshold": least(torch.cat([edit.threshold for edit in edits])),
            "typical": -least(-typical.where(alike, -torch.inf)),
            "lams": -least(-lams.where(alike, -torch.inf)),
        }
        parts |= {name: getattr(first, name) for name in ("site", "b_pre", "sae_digest", *SHARED)}
        kept = tuple(words[int(n)] for n in at)
        if not any(kept):
            return MergedSAEEdit(**parts, gate="whole")
        moves = taken[at][torch.tensor([bool(word) for word in kept])]
        return MergedReplacingEdit(**parts, gate="whole", moves=moves, replace_with=kept)

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
        lams, directions = self.lams.to(z.dtype), self.directions.to(z.dtype)
        if z.requires_grad:
            return contribution(lams * z, directions, amount)
        active = z.flatten(0, -2).any(0)
        if not bool(active.any()):
            return None
        return contribution(lams[active] * z[..., active], directions[active], amount)


@dataclass(frozen=True, eq=False)
class MergedReplacingEdit(MergedSAEEdit):
    """A `MergedSAEEdit` in which some neurons move states to those of other prompts, as in a `ReplacingSAEEdit`.

    Neuron i subtracts λ_i z_i u_i if it moves states, else λ_i z_i W_dec_i. All read the model's own states and what
    they subtract is summed, so that states in which several fire move by all of it, whatever the order. Raises
    ExciseError on construction as `MergedSAEEdit` does, and if words and moves do not fit the neurons.
    """

    moves: Tensor = field(kw_only=True)
    """`[r, d]`: u, as in `ReplacingSAEEdit`, for each of the neurons that move states, in their order."""
    replace_with: tuple[str, ...] = field(kw_only=True)
    """For each of the k neurons what its moves' prompts have in the concept's place; "" if it is turned down."""

    kind: ClassVar[str] = "sae-merged-replacing"
    SAVED: ClassVar[Mapping[str, type]] = {**MergedSAEEdit.SAVED, "replace_with": list}

    def __post_init__(self) -> None:
        super().__post_init__()
        for word in self.replace_with:
            if not isinstance(word, str) or (word and not REPLACEMENT.fullmatch(word)):
                raise ExciseError(f"replace_with cannot hold {shown(word)}; each is {REPLACEMENTS}, or empty")
        number, k = sum(map(bool, self.replace_with)), len(self.indices)
        if not number or len(self.replace_with) != k or tuple(self.moves.shape) != (number, self.site.width):
            raise ExciseError(f"words and moves do not fit {len(self.indices)} neurons; merge the erasers again")

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by field name, as saved."""
        return {**super().tensors(), "moves": self.moves}

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> Self:
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        saved |= {"replace_with": tuple(saved["replace_with"]), "moves": take("moves")}
        return super().restored(site, saved, take)

    @property
    def options(self) -> dict[str, Any]:
        """Options other than the Site and the tensors, as json."""
        return {**super().options, "replace_with": list(self.replace_with)}

    @property
    def description(self) -> str:
        """What the edit does to a model, for the eraser's card."""
        moving, down = len(self.moves), len(self.indices) - len(self.moves)
        fire = "one neuron of a sparse autoencoder fires" if moving == 1 else f"{moving} neurons of one fire"
        words = listed([f"“{word}”" for word in words_instead(self)])
        return (
            f"moving its text encoder's states, where {fire}, to those of {words}"
            f"{f', and turning down {down} of its neurons' if down else ''}"
        )

    @property
    def instead(self) -> tuple[str, ...]:
        """For each neuron what takes the concept's place; "" if it is turned down."""
        return self.replace_with

    @cached_property
    def directions(self) -> Tensor:
        """What a code of 1 subtracts at λ_i = 1, `[k, d]`."""
        replacing = torch.tensor([bool(word) for word in self.replace_with], device=self.device)
        with torch.inference_mode(False):  # what was made in inference mode has no gradients later
            made = self.W_dec.clone()
            made[replacing] = self.moves
        return made


def words_instead(edit: object) -> list[str]:
    """Return what takes the concept's place, each word once, in order of the alphabet; nothing for other edits."""
    return sorted({*filter(None, edit.instead)}) if isinstance(edit, SAEEdit) else []


MERGEABLE = (SAEEdit, ReplacingSAEEdit, MergedSAEEdit, MergedReplacingEdit)


def can_be_merged(edit: object) -> TypeGuard[SAEEdit]:
    """Whether an edit acts on neurons of a text encoder's SAE behind the gate of a whole prompt."""
    if not isinstance(edit, SAEEdit) or type(edit) not in MERGEABLE:
        return False
    return edit.gate == "whole" and edit.source == "prompt"


def parts_of(created: Mapping[str, Any]) -> list[Any]:
    """Return what a merged eraser's `created` says of its parts; nothing for other erasers."""
    parts = created.get("erasers")
    return parts if isinstance(parts, list) else []
