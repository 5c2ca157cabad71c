"""The demo's sheet of pictures, before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from excise.app.demo.measure import TITLES, Flags, Outcome
from excise.app.pages.sheet import Block, Item, sheet


def comparison_png(outcomes: Sequence[Outcome], columns: int = 4) -> bytes:
    """Return a PNG with `columns` prompts of each family, before and after side by side.

    Prompts whose unerased picture shows the target come first: without it there is nothing to erase.
    """
    blocks = []
    for outcome in outcomes:
        family = outcome.family
        order = [*np.flatnonzero(_shows(outcome)), *np.flatnonzero(~_shows(outcome))][:columns]
        items = [
            Item([outcome.before[n], outcome.after[n]], [f"{family.label(n)}, seed {family.seeds[n]}", "erased"])
            for n in order
        ]
        blocks.append(Block(TITLES[family.name], items))
    return sheet(blocks, side=184)


def _shows(outcome: Outcome) -> Flags:
    """Return which unerased pictures show their prompt's subject: the target, or the unrelated object."""
    seen = outcome.seen_before
    return seen.other if outcome.family.name == "unrelated" else seen.target
