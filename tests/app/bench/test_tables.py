"""Tables of a run's page."""

from __future__ import annotations

from typing import Any

from excise.app.bench.tables import TESTED, differences
from excise.app.pages.parts import Badge, Cell


def method(value: float, concepts: int = 6) -> dict[str, Any]:
    """A method with the same share on every concept."""
    return {"concepts": {f"c{n}": {"ua": {"value": value, "n": 4}, "asr.language": None} for n in range(concepts)}}


def test_methods_are_compared_with_the_first_one_and_not_with_the_unerased_model() -> None:
    runs = {"none": method(0.0), "snce:k=10": method(0.5), "uce": method(1.0), "esd-x": method(0.25)}
    found = differences({"methods": runs})
    assert found is not None
    table, reach = found
    assert "cannot see small differences" not in reach and "p is at least 0.031, and 0.062 after the rule" in reach
    assert table.heads[2] == "Minus snce:k=10"
    p = f"{2 * 2 / 2**6:.2g}"  # two tests
    assert table.rows == [
        ("uce", TESTED["ua"], Cell("+50.0 points"), "6", p),
        ("esd-x", TESTED["ua"], Cell("-25.0 points"), "6", p),
    ]
    runs = {label: method(value, 8) for label, value in (("none", 0.0), ("snce", 0.5), ("uce", 1.0), ("esd-x", 0.25))}
    found = differences({"methods": runs})
    assert found is not None and found[1] == "A test over 8 concepts cannot see small differences."
    assert [row[2] for row in found[0].rows] == [
        Cell("+50.0 points", badge=Badge("better", "good")),
        Cell("-25.0 points", badge=Badge("worse", "bad")),
    ]


def test_one_method_alone_has_no_such_table() -> None:
    assert differences({"methods": {"none": method(0.0), "snce": method(1.0)}}) is None
    assert differences({"methods": {"none": method(0.0)}}) is None
