from __future__ import annotations

import math

import pytest

from excise.bench.bars import Bar, Standing
from excise.statistics import Estimate, share


@pytest.mark.parametrize(
    ("bar", "value", "low", "high", "standing"),
    [
        (Bar(0.05, "below"), 0.0, 0.0, 0.05, "reached"),
        (Bar(0.05, "below"), 0.05, 0.01, 0.051, "point only"),
        (Bar(0.05, "below"), 0.051, 0.0, 0.2, "missed"),
        (Bar(0.9, "above"), 1.0, 0.9, 1.0, "reached"),
        (Bar(0.9, "above"), 0.9, 0.89, 1.0, "point only"),
        (Bar(0.9, "above"), 0.89, 0.8, 1.0, "missed"),
        (Bar(0.02, "within"), 0.0, -0.02, 0.02, "reached"),
        (Bar(0.02, "within"), 0.0, -0.03, 0.01, "point only"),
        (Bar(0.02, "within"), 0.0, -0.01, 0.03, "point only"),
        (Bar(0.02, "within"), -0.03, -0.04, 0.0, "missed"),
        (Bar(0.9, "above"), 1.0, math.nan, math.nan, "point only"),
        (Bar(0.9, "above"), 1.0, 1.0, 1.0, "point only"),
    ],
)
def test_a_bar_is_reached_by_the_interval_and_not_by_the_point(
    bar: Bar, value: float, low: float, high: float, standing: Standing
) -> None:
    assert bar.standing(Estimate(value, low, high, 10)) == standing


def test_two_pictures_reach_nothing() -> None:
    assert Bar(0.05, "below").standing(share([False, False])) == "point only"
    assert Bar(0.05, "below").standing(share([False] * 80)) == "reached"
    assert Bar(0.05, "below").standing(share([])) is None
