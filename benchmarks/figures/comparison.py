"""Markdown of comparisons: a figure with its interval and number, who is in front, and which differences are real."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from excise.bench.comparison import compared, less_is_better, reach
from excise.bench.results import BASELINE
from excise.statistics import in_percent, wilson

Rows = Mapping[str, Mapping[str, Any]]
"""Results by method, with `figures`, and `concepts` if those of single concepts were kept."""


def cell(own: Mapping[str, Any], name: str) -> str:
    """Return a figure with its interval and number of pictures."""
    figure = own["figures"].get(name)
    if not figure or figure["value"] is None:
        return "n/a"
    return f"{in_percent(figure)}, {figure.get('pictures', figure['n'])}"


def table(rows: Rows, heads: Mapping[str, str]) -> list[str]:
    """Return a table with a row a method and a column a figure. `heads` are the columns' names by figure."""
    lines = [f"| | {' | '.join(heads.values())} |", "|---" * (len(heads) + 1) + "|"]
    for name, own in rows.items():
        refused = f" ({len(own['refused'])} refused)" if own.get("refused") else ""
        lines.append(f"| {name}{refused} | {' | '.join(cell(own, key) for key in heads)} |")
    return lines


def head(name: str, heads: Mapping[str, str]) -> str:
    """Return a figure's name in words; for an attack, that of its family."""
    return heads.get(name, name.removeprefix("asr."))


def verdict(rows: Rows, names: Iterable[str], heads: Mapping[str, str], ours: str = "snce") -> list[str]:
    """Return a paragraph: where `ours` has the best value of all methods, and where another has, and which.

    Figures in which all are equal are left out. Nothing if there is no other method.
    """
    found: dict[str, list[str]] = {"alone": [], "shared": [], "other": []}
    for name in names:
        values = {
            label: own["figures"][name]["value"]
            for label, own in rows.items()
            if label != BASELINE and (own["figures"].get(name) or {}).get("value") is not None
        }
        if ours not in values or len(set(values.values())) < 2:
            continue
        top = (min if less_is_better(name) else max)(values.values())
        leads = [label for label, value in values.items() if value == top]
        title = head(name, heads)
        if leads == [ours]:
            found["alone"].append(title)
        elif ours in leads:
            found["shared"].append(title)
        else:
            found["other"].append(f"{title} ({', '.join(leads)})")
    if not any(found.values()):
        return []
    alone, shared, other = ("; ".join(titles) or "none" for titles in found.values())
    return [
        "",
        f"By the values alone, {ours} is in front in: {alone}. It shares the front in: {shared}.",
        f"Others are in front in: {other}.",
    ]


def differences(rows: Rows, names: Iterable[str], heads: Mapping[str, str], against: str = "snce") -> list[str]:
    """Return the table of paired tests of every method against one, corrected for their number; [] if none can be."""
    found = compared(rows, names, against)
    if not found:
        return []
    lines = [
        f"Method minus {against}, the mean over the concepts that both have, in points. p is of a sign-flip test over",
        f"concepts, multiplied for {len(found)} tests by Holm's rule.",
        reach(found),
        "",
        "| method | figure | difference | concepts | p, adjusted | |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        word = "" if one.better is None else f"{one.method if one.better else against} is better"
        cells = (one.method, head(one.figure, heads), f"{100 * one.mean:+.1f}", one.concepts, f"{one.p:.2g}", word)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def widened(figure: Mapping[str, Any], pictures: int, base: float = 1.0) -> dict[str, Any]:
    """Return a figure of a file that lacks the number of pictures, with that number and an interval that respects it.

    If all concepts agree, or there is only one, the bootstrap has no width: the interval is Wilson's over all pictures.

    Args:
        figure: Share, or for a ratio the share divided by `base`.
        pictures: Number of pictures behind it.
        base: The unerased model's share.
    """
    if figure["value"] is None or not pictures:
        return dict(figure)
    found = {**figure, "pictures": pictures}
    if figure["low"] is None or figure["low"] == figure["high"]:
        pooled = wilson(min(pictures, round(figure["value"] * base * pictures)), pictures)
        found |= {"low": round(pooled.low / base, 4), "high": round(pooled.high / base, 4)}
    return found
