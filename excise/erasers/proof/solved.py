"""Weights that a closed form gives again, against those that an eraser's file holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from excise.erasers.edits.weights import WeightEdit

if TYPE_CHECKING:
    from excise.erasers.edits.registry import Edit


TOLERANCE = 0.05
"""Largest relative difference of a layer's change that counts as rounding. On the bundled model, UCE's and RECE's in
float16 and bfloat16 differ from those in float32 by up to 0.008 and 0.025."""


class Solved(NamedTuple):
    """The edits that an eraser's method gives again, and the settings in its file that they follow from, in words."""

    edits: Sequence[Edit]
    stated: str


def altered_weights(edits: Sequence[Edit], solved: Sequence[Edit]) -> list[str]:
    """Return the Sites at which an eraser's `edits` are not those `solved` for again.

    A layer's change ΔW is altered if |ΔW - solved| > TOLERANCE · |solved| (Frobenius norms). So is a Site that only one
    side edits, or that one side edits twice.
    """
    ours, theirs = ([edit.site.key for edit in side] for side in (edits, solved))
    odd = {key for key in (*ours, *theirs) if ours.count(key) != 1 or theirs.count(key) != 1}
    by_site = {edit.site.key: edit for edit in solved}
    for edit in edits:
        if edit.site.key not in odd and not _near(edit, by_site[edit.site.key]):
            odd.add(edit.site.key)
    return sorted(odd)


def _near(edit: Edit, solved: Edit) -> bool:
    if not (type(edit) is type(solved) is WeightEdit):
        return False
    saved, wanted = edit.change().double(), solved.change().double()
    return saved.shape == wanted.shape and bool((saved - wanted).norm() <= TOLERANCE * wanted.norm())
