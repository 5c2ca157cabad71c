"""The demo's sheet: every family of prompts before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from excise.app.demo.measure import TITLES, Flags, Outcome
from excise.app.pages.sheet import Block, Item, sheet


def comparison_png(outcomes: Sequence[Outcome], columns: int = 4) -> bytes:
    """Of each family the first `columns` prompts, before and after side by side.

    Of a family that asks for the target, those are shown first in which the unerased model draws it: elsewhere there is
    nothing to erase.
    """
    blocks = []
    for outcome in outcomes:
        family = outcome.family
        order = [*np.flatnonzero(_draws(outcome)), *np.flatnonzero(~_draws(outcome))][:columns]
        items = [
            Item([outcome.before[n], outcome.after[n]], [f"{family.label(n)}, seed {family.seeds[n]}", "erased"])
            for n in order
        ]
        blocks.append(Block(TITLES[family.name], items))
    return sheet(blocks, side=184)


def _draws(outcome: Outcome) -> Flags:
    """Which unerased pictures show what their prompts are about: the target, or the unrelated object."""
    seen = outcome.seen_before
    return seen.other if outcome.family.name == "unrelated" else seen.target
