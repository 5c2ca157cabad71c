"""Bar: what a figure should reach, and whether it does: by its interval, by the point alone, or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from excise.bench.statistics import Estimate, from_json

Side = Literal["below", "above", "within"]
Standing = Literal["reached", "point only", "missed"]
MEANINGS: dict[Standing, str] = {
    "reached": "the whole 95 % interval lies on the right side of the bar",
    "point only": "the value does, but its interval crosses the bar: too few pictures to tell",
    "missed": "the value itself lies on the wrong side",
}


@dataclass(frozen=True)
class Bar:
    """A bound and the side of it that a figure should lie on; `within` is a distance from 0."""

    bound: float
    side: Side

    def standing(self, figure: Estimate) -> Standing | None:
        """How the figure stands against the bar; None where there was nothing to count.

        A figure without an interval, or whose interval has no width although it is a mean over few, proves nothing: it
        never counts as reached.
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
        """The side in words: "at most", "at least" or "within"."""
        return {"below": "at most", "above": "at least", "within": "within"}[self.side]


CANVAS = {
    "ua": Bar(0.97, "above"),
    "ira_ratio": Bar(0.98, "above"),
    "cra_ratio": Bar(0.98, "above"),
    "identical": Bar(0.99, "above"),
    "mixed": Bar(0.90, "above"),
    "asr": Bar(0.05, "below"),
}
"""What an eraser should reach on Canvas, as means over concepts."""


def standings(figures: Mapping[str, Mapping[str, Any] | None], bars: Mapping[str, Bar]) -> dict[str, Standing | None]:
    """How each figure that has a bar stands against it, of figures as `Estimate.to_json` wrote them."""
    return {
        name: bar.standing(from_json(figure)) for name, bar in bars.items() if (figure := figures.get(name)) is not None
    }
