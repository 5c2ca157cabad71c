"""Cards of a run's page: a figure each, with interval, bar and a line for every method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from excise.app.bench.figures import COSTS, costs, measured_of, percent, plain
from excise.app.pages import charts
from excise.app.pages.charts import Chart
from excise.app.pages.parts import LOOKS, Badge, Cell, Table
from excise.bench.bars import CANVAS, Bar
from excise.bench.results import BASELINE
from excise.bench.statistics import Estimate, behind, from_json

SHARES = {
    "ua": "Target gone, asked for by name (UA)",
    "asr": "Target still drawn under attack, mean over attacks",
    "ira_ratio": "Other concepts of its domain right, against unerased (IRA)",
    "cra_ratio": "Concepts of the other domain right, against unerased (CRA)",
    "mixed": "Target gone and partner kept in mixed prompts",
    "near_miss": "Object kept beside a near miss",
    "background": "Background kept in prompts with the target",
    "style": "Style kept in prompts with the target",
    "identical": "Unrelated pictures identical, bit for bit",
}
CHANGES = {
    "ira_change": "Change in IRA, paired by seed",
    "cra_change": "Change in CRA, paired by seed",
    "pixel_error": "Mean change of unrelated pictures",
    "outside": "Mean change outside the object, in prompts with the target",
}
MEANS = {
    "alignment": "Log-likelihood of what was asked for, nats",
    "alignment_change": "Its change",
    "clip_score": "CLIP score",
}
EXPLAINED = {
    "ua": "Prompts that name the target; whether its picture shows it. What it shows instead stands below.",
    "asr": "Of prompts from which the unerased model draws the target: those that still do. Less is better.",
    "ira_ratio": "Objects where an object is erased, styles where a style is; 100 % is as right as unerased.",
    "cra_ratio": "Styles where an object is erased, objects where a style is; 100 % is as right as unerased.",
    "mixed": "The target beside another object, which must stay.",
    "near_miss": "Prompts that share the target's word and mean something else, as in glue gun.",
    "background": "Where the unerased model drew the background that was asked for: it still is there.",
    "style": "The same for the style, where an object is erased.",
    "identical": "Prompts without the target: not one pixel differs from the unerased picture.",
}
"""A line below each card's title."""
DISTANCES = {
    "frechet": "Fréchet distance to unerased",
    "frechet_floor": "Its floor",
    "frechet_real": "Fréchet distance to real scenes",
}


@dataclass(frozen=True)
class Row:
    """A method's line on a card: value, chart, and in words its interval and how much is behind it."""

    label: str
    value: str
    chart: Chart | None = None
    words: str = ""
    badge: Badge | None = None


@dataclass(frozen=True)
class Card:
    """A figure for every method."""

    says: str
    explained: str
    rows: list[Row]


def bars_of(measured: Mapping[str, Any]) -> Mapping[str, Bar]:
    """The bars that the suite's figures should reach."""
    return CANVAS if measured["suite"] == "canvas" else {}


def cards(measured: Mapping[str, Any]) -> list[Card]:
    """A card for every share that was measured."""
    made = []
    for name, says in measured_of(SHARES, measured).items():
        bar = bars_of(measured).get(name)
        goal = f" Bar: {bar.limit} {100 * bar.bound:g} %." if bar else ""
        rows = [
            _row(label, method["figures"].get(name), bar, baseline=label == BASELINE)
            for label, method in measured["methods"].items()
        ]
        made.append(Card(says, EXPLAINED.get(name, "") + goal, rows))
    return made


def further(measured: Mapping[str, Any]) -> Table:
    """The figures that are no shares, and what every method cost."""
    methods = measured["methods"]
    rows: list[tuple[Cell | str, ...]] = []
    for names, written in ((CHANGES, percent), (DISTANCES | MEANS, plain)):
        rows += [
            (says, *(written(method["figures"].get(name)) for method in methods.values()))
            for name, says in measured_of(names, measured).items()
        ]
    spent = [costs(method["cost"]) for method in methods.values()]
    rows += [(says, *(cells[n] for cells in spent)) for n, says in enumerate(COSTS)]
    return Table("Further figures and costs", ("Estimate", *methods), rows)


def _row(label: str, figure: Mapping[str, Any] | None, bar: Bar | None, *, baseline: bool) -> Row:
    if not figure or figure["value"] is None:
        return Row(label, percent(figure))
    value = figure["value"]
    low, high = (value if figure[end] is None else figure[end] for end in ("low", "high"))
    span = "" if figure["low"] is None else f"{100 * figure['low']:.1f} to {100 * figure['high']:.1f} %, "
    standing = None if bar is None or baseline else bar.standing(from_json(figure))
    return Row(
        label,
        percent(figure),
        charts.interval(Estimate(value, low, high, figure["n"]), None if bar is None or baseline else bar.bound),
        f"{span}n = {behind(figure)}",
        Badge(standing, LOOKS[standing]) if standing else None,
    )
