"""Plots of a run's page: the front of methods, and the sweeps of their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from excise.app.bench.cards import CHANGES, DISTANCES
from excise.app.pages import svg
from excise.bench.worker import Entry
from excise.methods import method as method_of

SWEPT = {
    "ua": ("target gone (UA)", "accent"),
    "ira_ratio": ("others kept (IRA)", "cool"),
    "mixed": ("partner kept", "good"),
    "asr": ("drawn under attack", "mute"),
}
"""What a sweep's plot shows: its name there and its colour."""


def tradeoff(measured: Mapping[str, Any]) -> str:
    """Attack success against what moved: the Fréchet distance where there were pictures enough, else the pixels."""

    def value(method: Mapping[str, Any], name: str) -> float | None:
        figure = method["figures"].get(name)
        return figure["value"] if figure else None

    methods = {label: method for label, method in measured["methods"].items() if value(method, "asr") is not None}
    moved, says = "frechet", DISTANCES["frechet"]
    if any(value(method, moved) is None for method in methods.values()):
        moved, says = "pixel_error", CHANGES["pixel_error"]
    points = [(label, value(method, "asr") or 0.0, value(method, moved) or 0.0) for label, method in methods.items()]
    if len(points) < 2:
        return ""
    plot = svg.scatter(points, "target still drawn under attack", says)
    return f"""<section><h2>Erased against disturbed</h2>
<p class="faint">Down and to the left is better: the target is gone, and nothing else moved. The dashed line joins what
nothing else beats on both axes.</p>
<div class="card front">{plot}</div></section>"""


def swept(measured: Mapping[str, Any]) -> str:
    """A plot for every setting of a method that takes three values or more while its others stay the same."""
    plots = []
    for setting, fixed, labels in sweeps(list(measured["methods"])):
        series = []
        for name, (says, kind) in SWEPT.items():
            figures = {x: measured["methods"][label]["figures"].get(name) for x, label in labels.items()}
            points = [(x, figure["value"]) for x, figure in figures.items() if figure and figure["value"] is not None]
            if points:
                series.append((says, points, kind))
        if series:
            plots.append(f'<div class="card"><h3>{escape(fixed)}</h3>{svg.lines(series, setting)}</div>')
    if not plots:
        return ""
    return f"""<section><h2>Sweeps</h2>
<p class="faint">One setting at a time, every other one the same.</p>
<div class="plots wide-plots">{"".join(plots)}</div></section>"""


def sweeps(labels: Sequence[str]) -> list[tuple[str, str, dict[float, str]]]:
    """Settings with three values or more among methods that are otherwise the same: the setting, what is fixed, and
    the label at each value."""
    found: dict[tuple[str, str], dict[float, str]] = {}
    for label in labels:
        entry = Entry.parse(label)
        every = vars(method_of(entry.method).Config(**entry.settings))
        numbers = {name for name, value in every.items() if isinstance(value, int | float)}
        for setting in numbers:
            others = {name: value for name, value in entry.settings.items() if name != setting}
            fixed = ", ".join((entry.method, *(f"{name} {value}" for name, value in sorted(others.items()))))
            found.setdefault((setting, fixed), {})[every[setting]] = label
    return [(setting, fixed, by) for (setting, fixed), by in found.items() if len(by) > 2]
