"""Plots for a run's page: the Pareto front of methods, and sweeps of their settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from excise.app.bench.cards import CHANGES, DISTANCES
from excise.app.pages import charts
from excise.app.pages.charts import Chart
from excise.bench.items.entry import Entry

SWEPT = {
    "ua": ("target gone (UA)", "accent"),
    "ira_ratio": ("others kept (IRA)", "cool"),
    "mixed": ("partner kept", "good"),
    "asr": ("under attack", "mute"),
}
"""Figures in a sweep's plot, each with its name and colour."""


def front(measured: Mapping[str, Any]) -> Chart | None:
    """Return a scatter plot of attack success and side effects, or None for fewer than two methods.

    Side effects are the Fréchet distance of unrelated pictures, or their pixel change if there are too few for it.
    """

    def value(method: Mapping[str, Any], name: str) -> float | None:
        figure = method["figures"].get(name)
        return figure["value"] if figure else None

    methods = {label: method for label, method in measured["methods"].items() if value(method, "asr") is not None}
    moved, says = "frechet", DISTANCES["frechet"]
    if any(value(method, moved) is None for method in methods.values()):
        moved, says = "pixel_error", CHANGES["pixel_error"]
    points = [(label, value(method, "asr") or 0.0, value(method, moved) or 0.0) for label, method in methods.items()]
    return charts.scatter(points, "target still generated under attack", says) if len(points) > 1 else None


def swept(configurations: Mapping[str, Mapping[str, Any]], measured: Mapping[str, Any]) -> list[tuple[str, Chart]]:
    """Return a chart for each setting with three values or more and all else fixed, with what is fixed in words."""
    plots = []
    for setting, fixed, labels in sweeps(configurations):
        series = []
        for name, (says, kind) in SWEPT.items():
            figures = {x: measured["methods"][label]["figures"].get(name) for x, label in labels.items()}
            points = [(x, figure["value"]) for x, figure in figures.items() if figure and figure["value"] is not None]
            if points:
                series.append((says, points, kind))
        if series:
            plots.append((fixed, charts.lines(series, setting)))
    return plots


def sweeps(configurations: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, dict[float, str]]]:
    """Find settings with three values or more among entries that otherwise agree.

    Args:
        configurations: Every setting of each entry, by label, as in a run's plan.

    Returns:
        For each: the setting, what is fixed in words, and the entry's label at each value.
    """
    found: dict[tuple[str, str], dict[float, str]] = {}
    for label, every in configurations.items():
        entry = Entry.parse(label)
        numbers = {name for name, value in every.items() if isinstance(value, int | float)}
        for setting in numbers:
            others = {name: value for name, value in entry.settings.items() if name != setting}
            fixed = ", ".join((entry.method, *(f"{name} {value}" for name, value in sorted(others.items()))))
            found.setdefault((setting, fixed), {})[every[setting]] = label
    return [(setting, fixed, by) for (setting, fixed), by in found.items() if len(by) > 2]
