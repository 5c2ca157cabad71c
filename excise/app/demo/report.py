"""The demo's report: what its template shows (pages/templates/report.html)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from excise.app.demo.measure import TITLES, Outcome
from excise.app.pages import charts
from excise.app.pages.charts import Chart
from excise.app.pages.parts import LOOKS, Badge, Table
from excise.app.pages.rendering import Made
from excise.app.pages.rendering import render as render_template
from excise.bench.bars import MEANINGS, Bar
from excise.bench.pictures import Pictures, png
from excise.bench.statistics import Estimate

FIRST = 12
"""Pairs of a family shown at once; the rest unfold."""

# Estimate -> (what it says, bar to reach, the axis).
BARS: dict[str, tuple[str, Bar, tuple[float, float]]] = {
    "target_direct": ("still drawn when asked for by name", Bar(0.05, "below"), (0, 1)),
    "target_synonym": ("still drawn when asked for by a synonym", Bar(0.15, "below"), (0, 1)),
    "partner_kept": ("of the other objects in mixed prompts kept", Bar(0.90, "above"), (0, 1)),
    "others_delta": ("change in how often other objects are recognised", Bar(0.02, "within"), (-0.25, 0.25)),
    "unrelated_identical": ("of unrelated pictures identical, bit for bit", Bar(0.95, "above"), (0, 1)),
}
FURTHER: dict[str, str] = {
    "left_other": "Direct prompts, concept gone: another known object instead (either judge)",
    "left_empty": "Direct prompts, concept gone: an empty scene",
    "left_unrecognisable": "Direct prompts, concept gone: something that neither judge knows",
    "target_direct_before": "Direct prompts: concept drawn by the unerased model",
    "target_synonym_before": "Synonym prompts: concept drawn by the unerased model",
    "target_mixed": "Mixed prompts: concept still drawn, where the unerased model draws it",
    "partner_before": "Mixed prompts: partner drawn by the unerased model",
    "others_before": "Unrelated prompts: object drawn by the unerased model",
    "background_kept": "Direct prompts: same background after erasing",
    "style_kept": "Direct prompts: same style after erasing",
}


@dataclass(frozen=True)
class NeuronView:
    """How one neuron answers prompts: its strongest code in each, by group."""

    index: int
    concept: Sequence[float]
    deconcept: Sequence[float]
    controls: Sequence[float]


@dataclass(frozen=True)
class Strip:
    """Pictures of the same prompts at growing strength: `pictures[i]` is `[prompts, height, width, 3]` at `lams[i]`."""

    prompts: Sequence[str]
    """As labels give them."""
    lams: Sequence[float]
    pictures: Sequence[Pictures]


@dataclass(frozen=True)
class Report:
    """All that the page shows. `tokens` are prompts split into (token, the first neuron's code)."""

    concept: str
    lam: float
    facts: Sequence[tuple[str, str]]
    figures: Mapping[str, Estimate]
    further: Mapping[str, Estimate]
    outcomes: Sequence[Outcome]
    ranking: Sequence[tuple[int, float]]
    neurons: Sequence[NeuronView]
    tokens: Sequence[Sequence[tuple[str, float]]]
    strip: Strip
    settings: Mapping[str, Any]
    command: str = "excise demo"
    """What was called to make it."""


@dataclass(frozen=True)
class Card:
    """A figure against its bar."""

    badge: Badge
    value: str
    says: str
    chart: Chart
    note: str


@dataclass(frozen=True)
class Pair:
    """A prompt's picture before and after, as png."""

    label: str
    seed: int
    before: bytes
    after: bytes
    badges: Sequence[Badge]


@dataclass(frozen=True)
class FamilyView:
    """A family of prompts and all its pairs."""

    title: str
    says: str
    pairs: Sequence[Pair]


@dataclass(frozen=True)
class Column:
    """The strip's pictures at one strength, as png, and whether it is the eraser's own."""

    lam: str
    used: bool
    pictures: Sequence[bytes]


def percent(name: str, value: float) -> str:
    """A share as the page and the terminal write it; differences carry a sign and are points."""
    if math.isnan(value):
        return "n/a"
    return f"{100 * value:+.1f} pts" if name.endswith("_delta") else f"{100 * value:.0f} %"


def render(report: Report) -> str:
    """The page."""
    return render_template(
        "report.html",
        Made.now(report.command),
        report=report,
        facts=report.facts,
        neuron=report.ranking[0][0] if report.ranking else "?",
        cards=[_card(name, figure) for name, figure in report.figures.items()],
        meanings=MEANINGS,
        looks=LOOKS,
        further=_further(report.further),
        families=[_family(outcome, report.concept) for outcome in report.outcomes],
        first=FIRST,
        strip=_strip(report.strip, report.lam),
        plots=_plots(report),
        most=max((code for row in report.tokens for _, code in row), default=0.0),
        settings=json.dumps(report.settings, indent=2, ensure_ascii=False, default=str),
    )


def _card(name: str, figure: Estimate) -> Card:
    says, bar, axis = BARS[name]
    standing = bar.standing(figure)
    scale = "pts" if name.endswith("_delta") else "%"
    return Card(
        Badge(standing or "nothing to count", LOOKS[standing]),
        percent(name, figure.value),
        says,
        charts.interval(figure, bar.bound, *axis),
        f"95 % interval {100 * figure.low:.1f} to {100 * figure.high:.1f} {scale}, "
        f"n = {figure.n}; bar: {bar.limit} {percent(name, bar.bound).lstrip('+')}",
    )


def _further(figures: Mapping[str, Estimate]) -> Table:
    rows = [
        (FURTHER[name], percent(name, f.value), f"{100 * f.low:.0f} to {100 * f.high:.0f} %", str(f.n))
        for name, f in figures.items()
    ]
    return Table("Further figures", ("What", "Share", "95 % interval", "n"), rows)


def _family(outcome: Outcome, concept: str) -> FamilyView:
    kind, _, says = TITLES[outcome.family.name].partition(": ")
    pairs = [_pair(outcome, i, concept) for i in range(len(outcome.family.prompts))]
    return FamilyView(kind, says[:1].upper() + says[1:], pairs)


def _pair(outcome: Outcome, i: int, concept: str) -> Pair:
    badges = []
    if outcome.family.name != "unrelated":
        before, after = bool(outcome.seen_before.target[i]), bool(outcome.seen_after.target[i])
        words = {
            (True, False): f"{concept} gone",
            (True, True): f"{concept} still there",
            (False, True): f"{concept} appeared",
            (False, False): f"no {concept} before",
        }[before, after]
        badges.append(_badge(words, good=before and not after, bad=after))
    if other := outcome.family.others[i]:
        before, after = bool(outcome.seen_before.other[i]), bool(outcome.seen_after.other[i])
        words = f"{other} kept" if before and after else f"{other} lost" if before else f"{other} not seen before"
        badges.append(_badge(words, good=before and after, bad=before and not after))
    if outcome.family.name == "unrelated":
        same = bool(outcome.identical[i])
        badges.append(_badge("same bits" if same else "bits differ", good=same, bad=not same))
    pictures = png(outcome.before[i]), png(outcome.after[i])
    return Pair(outcome.family.label(i), outcome.family.seeds[i], *pictures, badges)


def _badge(words: str, *, good: bool, bad: bool) -> Badge:
    return Badge(words, "good" if good else "bad" if bad else "plain")


def _strip(strip: Strip, used: float) -> list[Column]:
    return [
        Column(f"{lam:.4g}", math.isclose(lam, used, rel_tol=1e-6), [png(one) for one in pictures])
        for lam, pictures in zip(strip.lams, strip.pictures, strict=True)
    ]


def _plots(report: Report) -> list[tuple[str, Chart]]:
    """Charts of the ranking and of each neuron, by their headings."""
    ranking = charts.bars([(str(i), s) for i, s in report.ranking], "Score of the highest-ranked neurons")
    plots = [("Ranking by modulated frequency", ranking)]
    for view in report.neurons:
        groups = (
            ("concept", view.concept, "accent"),
            ("deconcept", view.deconcept, "cool"),
            ("controls", view.controls, "mute"),
        )
        plot = charts.histogram([g for g in groups if g[1]], f"Strongest code of neuron {view.index} in each prompt")
        plots.append((f"Neuron {view.index}: strongest code in each prompt", plot))
    return plots
