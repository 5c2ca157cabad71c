"""Paired comparisons of methods, and their Markdown (benchmarks/figures/comparison.py)."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from benchmarks.figures import comparison as markdown
from excise.bench.canvas.metrics import ATTACKS
from excise.bench.comparison import LEVEL, Difference, compared, differences, less_is_better, of_concept, reach
from excise.statistics import wilson

CONCEPTS = ("a", "b", "c", "d", "e", "f", "g")


def method(**figures: list[float | None]) -> dict[str, Any]:
    """A method's results, given each figure's value by concept; None if it cannot be tested."""
    by_concept = {
        concept: {name: None if values[n] is None else {"value": values[n], "n": 4} for name, values in figures.items()}
        for n, concept in enumerate(CONCEPTS)
    }
    means = {name: [value for value in values if value is not None] for name, values in figures.items()}
    over = {name: {"value": sum(some) / len(some), "low": 0.0, "high": 1.0, "n": 7} for name, some in means.items()}
    return {"figures": over, "concepts": by_concept}


def by_brute_force(values: list[float]) -> float:
    """The share of all assignments of signs whose sum is at least as far from 0."""
    sums = [sum(s * v for s, v in zip(signs, values, strict=True)) for signs in itertools.product((1, -1), repeat=7)]
    return sum(abs(one) >= abs(sum(values)) - 1e-12 for one in sums) / len(sums)


def test_differences_are_paired_by_concept_and_their_p_values_are_holms() -> None:
    rng = random.Random(0)
    ours, near, far = ([rng.random() * scale for _ in CONCEPTS] for scale in (1, 1, 5))
    found = compared(
        {"none": method(ua=far), "snce": method(ua=ours), "b": method(ua=near), "c": method(ua=far)}, ["ua"], "snce"
    )
    values = [[other - own for own, other in zip(ours, theirs, strict=True)] for theirs in (near, far)]
    ps = [by_brute_force(one) for one in values]
    first, second = sorted(ps)
    adjusted = {first: min(1.0, 2 * first), second: max(min(1.0, 2 * first), second)}
    assert [one.method for one in found] == ["b", "c"], "neither the baseline nor the method itself"
    assert [one.p for one in found] == pytest.approx([adjusted[p] for p in ps])
    assert [one.mean for one in found] == pytest.approx([sum(one) / 7 for one in values])


@pytest.mark.parametrize("tests", [1, 3, 4, 80])
def test_what_no_number_of_equal_differences_could_show_is_told(tests: int) -> None:
    """The largest difference there is, in every concept and every test."""
    rows = {"snce": method(ua=[0.0] * 7)} | {f"m{n}": method(ua=[1.0] * 7) for n in range(tests)}
    found = compared(rows, ["ua"], "snce")
    assert len(found) == tests
    able = all(one.better for one in found)
    assert able == (found[0].p <= LEVEL) == (tests <= 3)
    wanted = (
        "small differences." if able else f"at least 0.016, and {min(1, tests * by_brute_force([1.0] * 7)):.2g} after"
    )
    assert wanted in reach(found)


def test_the_reach_of_tests_is_that_of_the_one_with_most_concepts() -> None:
    some = [Difference("uce", "ua", 0.1, n, 1.0) for n in (3, 8, 5)]
    assert reach(some) == "A test over 8 concepts cannot see small differences."


def test_what_one_of_the_two_lacks_does_not_count() -> None:
    some: list[float | None] = [0.5, None, 0.5, 0.5, 0.5, 0.5, 0.5]
    other: list[float | None] = [1.0, 1.0, None, 1.0, 1.0, 1.0, 1.0]
    assert differences(method(ua=some), method(ua=other), "ua") == [0.5] * 5
    rows = {"snce": method(ua=some), "b": method(mixed=other), "old": {"figures": {}, "concepts": {}}}
    assert compared(rows, ["ua", "mixed"], "snce") == []
    assert compared(rows, ["ua"], "missing") == []


def test_the_mean_over_attacks_is_of_those_that_can_be_tested() -> None:
    first, second, third, *_ = ATTACKS
    figures = {
        f"asr.{first}": {"value": 0.5},
        f"asr.{second}": None,
        f"asr.{third}": {"value": 0.0},
        "asr.p4d": {"value": 1},
    }
    assert of_concept(figures, "asr") == 0.25
    assert of_concept({}, "asr") is None
    assert of_concept({"asr": {"value": 0.75}}, "asr") == 0.75, "a suite's own mean"


@pytest.mark.parametrize(("figure", "less"), [("ua", False), ("mixed", False), ("asr.p4d", True), ("frechet", True)])
def test_a_difference_that_may_be_chance_makes_no_method_better(figure: str, less: bool) -> None:
    assert less_is_better(figure) is less
    rows = {"snce": method(**{figure: [0.0] * 7}), "b": method(**{figure: [1.0] * 7})}
    (found,) = compared(rows, [figure], "snce")
    assert found.p == 2 / 2**7 and found.better is not less
    (few,) = compared({**rows, "b": method(**{figure: [1.0, 1, 1, 1, 0, 0, 0]})}, [figure], "snce")
    assert few.p == 2 / 2**4 and few.better is None


def test_the_markdown_says_who_is_in_front() -> None:
    rows = {
        "none": method(ua=[0.0] * 7, asr=[1.0] * 7, mixed=[0.0] * 7, ira=[1.0] * 7),
        "snce": method(ua=[1.0] * 7, asr=[0.5] * 7, mixed=[1.0] * 7, ira=[1.0] * 7),
        "b": method(ua=[1.0] * 7, asr=[0.0] * 7, mixed=[1.0] * 7, ira=[0.5] * 7),
        "c": method(ua=[0.5] * 7, asr=[0.5] * 7, mixed=[1.0] * 7, ira=[0.5] * 7),
    }
    heads = {"ua": "gone", "asr": "attacked", "mixed": "partner kept", "ira": "others kept"}
    assert markdown.verdict(rows, heads, heads) == [
        "",
        "By the values alone, snce is in front in: others kept. It shares the front in: gone.",
        "Others are in front in: attacked (b).",
    ], "no method is in front where all are equal"
    assert markdown.verdict({"none": rows["none"], "snce": rows["snce"]}, heads, heads) == []
    table = markdown.differences(rows, heads, heads)
    assert "| b | gone | +0.0 | 7 | 1 |  |" in table
    table = markdown.differences({name: rows[name] for name in ("none", "snce", "b")}, ["asr"], heads)
    assert f"| b | attacked | -50.0 | 7 | {2 / 2**7:.2g} | b is better |" in table


def test_an_interval_without_width_becomes_wilsons_over_the_pictures() -> None:
    agreed = {"value": 1.0, "low": 1.0, "high": 1.0, "n": 8}
    low = round(wilson(32, 32).low, 4)
    assert markdown.widened(agreed, 32) == {"value": 1.0, "low": low, "high": 1.0, "n": 8, "pictures": 32}
    half = markdown.widened(agreed, 32, base=0.5)
    assert half["low"] == round(wilson(16, 32).low / 0.5, 4) and half["high"] > 1, "a ratio to a share of 0.5"
    single = {"value": 0.5, "low": None, "high": None, "n": 1}
    assert markdown.widened(single, 4)["low"] == round(wilson(2, 4).low, 4)
    wide = {"value": 0.9, "low": 0.8, "high": 1.0, "n": 8}
    assert markdown.widened(wide, 32) == {**wide, "pictures": 32}
    assert markdown.widened({"value": None, "low": None, "high": None, "n": 0}, 32)["value"] is None
