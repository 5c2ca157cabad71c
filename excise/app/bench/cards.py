"""Cards of a run's page: a figure each, with interval, bar and a line for every method."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from excise.app.bench.figures import COSTS, costs, measured_of, percent, plain
from excise.app.pages import svg
from excise.app.pages.badges import BADGES, legend
from excise.bench.bars import CANVAS, Bar
from excise.bench.results import BASELINE
from excise.bench.statistics import Figure, behind, from_json

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


def summary(measured: Mapping[str, Any]) -> str:
    cards = []
    shares, changes, others = (measured_of(names, measured) for names in (SHARES, CHANGES, DISTANCES | MEANS))
    bars = CANVAS if measured["suite"] == "canvas" else {}
    for name, says in shares.items():
        bar = bars.get(name)
        rows = "".join(
            _row(label, method["figures"].get(name), None if label == BASELINE else bar)
            for label, method in measured["methods"].items()
        )
        goal = f" Bar: {bar.limit} {100 * bar.bound:g} %." if bar else ""
        explained = f'<p class="note">{escape(EXPLAINED.get(name, "") + goal)}</p>'
        cards.append(f'<div class="card"><h3>{escape(says)}</h3>{explained}{rows}</div>')
    methods = measured["methods"]
    table: list[tuple[str, list[str]]] = []
    table += [(says, [percent(m["figures"].get(name)) for m in methods.values()]) for name, says in changes.items()]
    table += [(says, [plain(m["figures"].get(name)) for m in methods.values()]) for name, says in others.items()]
    spent = [costs(method["cost"]) for method in methods.values()]
    table += [(says, [cells[n] for cells in spent]) for n, says in enumerate(COSTS)]
    head = "".join(f"<th>{escape(label)}</th>" for label in methods)
    rows = "".join(
        f"<tr><td>{escape(says)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for says, cells in table
    )
    return f"""<section><h2>Figures</h2>
<div class="plots">{"".join(cards)}</div>
{legend() if bars else ""}
<div class="scroll"><table class="wide"><tr><th>Further figures</th>{head}</tr>{rows}</table></div></section>"""


def _row(label: str, figure: Mapping[str, Any] | None, bar: Bar | None) -> str:
    """A method's line on a card: value, plot, and in words its interval, how much is behind it, and its standing."""
    words = ""
    if figure and figure["value"] is not None:
        span = "" if figure["low"] is None else f"{100 * figure['low']:.1f} to {100 * figure['high']:.1f} %, "
        words = f"{span}n = {behind(figure)}"
        if bar and (standing := bar.standing(from_json(figure))):
            words += f'</span><span class="badge {BADGES[standing]}">{standing}'
        words = f'<div class="text note"><span>{words}</span></div>'
    return (
        f'<div class="method"><span>{escape(label)}</span><b>{percent(figure)}</b>'
        f"{_interval(figure, None if bar is None else bar.bound)}{words}</div>"
    )


def _interval(figure: Mapping[str, Any] | None, bar: float | None = None) -> str:
    if not figure or figure["value"] is None:
        return ""
    value = figure["value"]
    low, high = (value if figure[end] is None else figure[end] for end in ("low", "high"))
    return svg.interval(Figure(value, low, high, figure["n"]), bar)
