"""Cards of a run's page: one for each figure, with its interval and bar and a line for each method."""

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
from excise.statistics import Estimate, behind, from_json

SHARES = {
    "ua": "Target gone when named directly (UA)",
    "asr": "Target still generated under attack, mean over attacks",
    "ira_ratio": "Accuracy on other concepts of the same domain, relative to unerased (IRA)",
    "cra_ratio": "Accuracy on concepts of the other domain, relative to unerased (CRA)",
    "mixed": "Target gone and partner kept in mixed prompts",
    "near_miss": "Object kept in near-miss prompts",
    "near_synonym": "Object kept if named by a synonym near the target",
    "vocabulary": "Target generated from the words that the eraser misses most",
    "vocabulary_unerased": "Target generated from the same words by the unerased model",
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
    "alignment": "Log-likelihood of the requested content, nats",
    "alignment_change": "Change of that log-likelihood",
    "clip_score": "CLIP score",
}
EXPLAINED = {
    "ua": "Share of the prompts naming the target whose picture does not show it. More is better; what these pictures "
    "show instead is listed below.",
    "asr": "Share of the prompts from which the unerased model generates the target that still do. Less is better.",
    "ira_ratio": "Other objects if an object is erased, other styles if a style is. At 100 %, as accurate as unerased.",
    "cra_ratio": "Styles if an object is erased, objects if a style is. At 100 %, as accurate as unerased.",
    "mixed": "Prompts with the target and another object, the partner, which must stay.",
    "near_miss": "Prompts that share the target's word but mean something else, such as glue gun.",
    "near_synonym": "Synonyms of other objects, those nearest to the target for the text encoder. Only those count "
    "from which the unerased model generates their object.",
    "vocabulary": "The vocabulary's whole words still nearest to the target under the eraser. Less is better. For "
    "the unerased model, prompts with the target's name.",
    "vocabulary_unerased": "What the unerased model generates from each method's words, for comparison.",
    "background": "Of the pictures whose background the unerased model got right, the share that keep it.",
    "style": "Of the pictures whose style the unerased model got right, the share that keep it (erased objects only).",
    "identical": "Share of the prompts without the target whose picture equals the unerased one in every pixel.",
}
"""Explanations below the cards' titles."""
DISTANCES = {
    "frechet": "Fréchet distance to unerased",
    "frechet_floor": "Floor of that distance",
    "frechet_real": "Fréchet distance to real scenes",
}


@dataclass(frozen=True)
class Row:
    """A method's line on a card: value, chart, and the interval and sample size in words."""

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
    """Return the bars that the suite's figures should reach."""
    return CANVAS if measured["suite"] == "canvas" else {}


def cards(measured: Mapping[str, Any]) -> list[Card]:
    """Return a card for every share that was measured."""
    made = []
    for name, says in measured_of(SHARES, measured).items():
        bar = bars_of(measured).get(name)
        goal = f" Bar: {bar.limit} {100 * bar.bound:g} %." if bar else ""
        rows = [
            row(label, method["figures"].get(name), bar, baseline=label == BASELINE)
            for label, method in measured["methods"].items()
        ]
        made.append(Card(says, EXPLAINED.get(name, "") + goal, rows))
    return made


def further(measured: Mapping[str, Any]) -> Table:
    """Return the table of figures other than shares and of each method's costs."""
    methods = measured["methods"]
    rows: list[tuple[Cell | str, ...]] = []
    for names, written in ((CHANGES, percent), (DISTANCES | MEANS, plain)):
        rows += [
            (says, *(written(method["figures"].get(name)) for method in methods.values()))
            for name, says in measured_of(names, measured).items()
        ]
    spent = [costs(method["cost"]) for method in methods.values()]
    rows += [(says, *(cells[n] for cells in spent)) for n, says in enumerate(COSTS)]
    return Table("Further figures and costs", ("Figure", *methods), rows)


def row(label: str, figure: Mapping[str, Any] | None, bar: Bar | None = None, *, baseline: bool = False) -> Row:
    """Return a card's line with a share, its interval, and whether it reaches a bar (the unerased model has none)."""
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
