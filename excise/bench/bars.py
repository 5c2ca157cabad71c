"""Bars: the value a figure should reach, and whether it does so by its interval, by its value alone, or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from excise.statistics import Estimate, from_json

Side = Literal["below", "above", "within"]
Standing = Literal["reached", "point only", "missed"]
MEANINGS: dict[Standing, str] = {
    "reached": "the whole 95 % interval lies on the right side of the bar",
    "point only": "the value lies on the right side, but its interval crosses the bar: too few pictures to tell",
    "missed": "the value lies on the wrong side",
}


@dataclass(frozen=True)
class Bar:
    """Bound, and the side on which a figure should lie. `within` bounds the distance from 0."""

    bound: float
    side: Side

    def standing(self, figure: Estimate) -> Standing | None:
        """Return how the figure compares with the bar; None if there was nothing to count.

        A figure never counts as reached if it has no interval, or an interval of width 0 (a mean over few).
        """
        if math.isnan(figure.value):
            return None
        if not self._holds(figure.value):
            return "missed"
        proved = figure.low < figure.high and self._holds(figure.low) and self._holds(figure.high)
        return "reached" if proved else "point only"

    def _holds(self, value: float) -> bool:
        if self.side == "within":
            return abs(value) <= self.bound
        return value <= self.bound if self.side == "below" else value >= self.bound

    @property
    def limit(self) -> str:
        """Side in words: "at most", "at least" or "within"."""
        return {"below": "at most", "above": "at least", "within": "within"}[self.side]


CANVAS = {
    "ua": Bar(0.97, "above"),
    "ira_ratio": Bar(0.98, "above"),
    "cra_ratio": Bar(0.98, "above"),
    "identical": Bar(0.99, "above"),
    "mixed": Bar(0.90, "above"),
    "asr": Bar(0.05, "below"),
}
"""Bars for an eraser on Canvas, for means over concepts."""


def standings(figures: Mapping[str, Mapping[str, Any] | None], bars: Mapping[str, Bar]) -> dict[str, Standing | None]:
    """Return how each figure with a bar compares with it. `figures` are as written by `Estimate.to_json`."""
    return {
        name: bar.standing(from_json(figure)) for name, bar in bars.items() if (figure := figures.get(name)) is not None
    }
