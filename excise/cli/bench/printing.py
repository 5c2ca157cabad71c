"""What `excise bench` prints of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from excise.cli.terminal import note, table

if TYPE_CHECKING:
    from excise.bench.bars import Bar
    from excise.bench.run import Run

COLUMNS = {"ua": "UA", "ira": "IRA", "cra": "CRA", "mixed": "mixed", "asr": "attacks", "identical": "identical"}
LEFT = {
    "left_other": "another object",
    "left_empty": "empty scene",
    "left_unrecognisable": "unrecognisable",
    "background": "background kept",
    "left_class": "another class",
    "left_unsure": "unsure class",
    "style": "style kept",
    "objects": "objects kept",
}


def show(run: Run, measured: Mapping[str, Any]) -> None:
    """Print a run's figures as tables: those that it has measured."""
    from excise.app.bench.figures import COSTS, costs, cut_prompts, measured_of, plain, reused_pictures, unlike_pictures
    from excise.app.bench.profile import lines
    from excise.app.bench.runs import suite_of
    from excise.app.bench.tables import attacks
    from excise.bench.bars import CANVAS, standings
    from excise.bench.results import BASELINE, outside
    from excise.statistics import behind

    methods = measured["methods"]
    title = f"{measured['suite']}, {measured['size']}"
    for heading, columns in (
        ("means over concepts, %", COLUMNS),
        ("what pictures show when the target is gone, %", LEFT),
    ):
        if shown := measured_of(columns, measured):
            rows = [(label, *(_cell(one["figures"].get(n)) for n in shown)) for label, one in methods.items()]
            table(f"{title}: {heading}", ("method", *shown.values()), rows)
    # The probes' own table has their intervals, and those that ask something else.
    attacked = None if measured["suite"] == "probes" else attacks(suite_of(run), measured)
    if attacked:
        rows = [tuple(cell if isinstance(cell, str) else cell.text for cell in row) for row in attacked.rows]
        table(attacked.caption, [head.lower() for head in attacked.heads[:2]] + [*methods], rows)
    probed, rows = lines(measured)
    if rows:
        table("Probes: prompts that still generate the target (leakage: its colours move), %", ("probe", *probed), rows)
    bars = CANVAS if measured["suite"] == "canvas" else {}
    by_method = {label: standings(one["figures"], bars) for label, one in methods.items() if label != BASELINE}
    rows = [
        (label, _bar(name, bars[name]), standing, behind(methods[label]["figures"][name]))
        for label, by_bar in by_method.items()
        for name, standing in by_bar.items()
        if standing
    ]
    if rows:
        table("Bars, by the 95 % interval", ("method", "bar", "", "n"), rows)
    rows = [(label, plain(one["figures"].get("frechet")), *costs(one["cost"])) for label, one in methods.items()]
    table("Distance to the unerased pictures, and cost", ("method", "Fréchet distance", *COSTS), rows)
    for label, method in methods.items():
        if method["cut"] or method["unread"]:
            note(f"{label}: {cut_prompts(method)}")
        if method["reused"]:
            note(f"{label}: {reused_pictures(method)}")
        if method["unlike"]:
            note(f"{label}: {unlike_pictures(method)}")
        what = outside(method) | {"concepts refused": len(method["refused"])}
        if any(what.values()):
            note(f"{label}, left out of the figures: {', '.join(f'{name} {n}' for name, n in what.items() if n)}")
    note(f"wrote {run.where('report.html')}, results.json and results.csv")


def _bar(name: str, bar: Bar) -> str:
    plain = name.removesuffix("_ratio")
    return f"{COLUMNS.get(plain, plain)}{', of none,' * (plain != name)} {bar.limit} {100 * bar.bound:g} %"


def _cell(figure: dict[str, Any] | None) -> str:
    if not figure or figure["value"] is None:
        return "n/a"
    if figure["low"] is None:
        return f"{100 * figure['value']:.1f}"
    return f"{100 * figure['value']:.1f} ({100 * figure['low']:.0f}-{100 * figure['high']:.0f})"
