"""Figures of a run as its page and the terminal write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNKNOWN = "n/a"
"""In the place of a figure that was not measured."""
COSTS = ("Time to erase", "Added to a picture", "Artefact", "Peak memory")


def measured_of(names: Mapping[str, str], measured: Mapping[str, Any]) -> dict[str, str]:
    """Those of the figures' names that this run has measured for any method."""
    figures = [method["figures"] for method in measured["methods"].values()]
    return {n: says for n, says in names.items() if any((one.get(n) or {}).get("value") is not None for one in figures)}


def percent(figure: Mapping[str, Any] | None) -> str:
    """A share as the page and the terminal write it."""
    return UNKNOWN if not figure or figure["value"] is None else f"{100 * figure['value']:.1f} %"


def interval(figure: Mapping[str, Any] | None) -> str:
    """A share's interval as the page writes it, empty without one."""
    if not figure or figure["value"] is None or figure["low"] is None:
        return ""
    return f"{100 * figure['low']:.0f} to {100 * figure['high']:.0f}"


def plain(figure: Mapping[str, Any] | None) -> str:
    """A figure that is no share, as the page writes it."""
    return UNKNOWN if not figure or figure["value"] is None else f"{figure['value']:.3g}"


def count(figure: Mapping[str, Any]) -> str:
    """A number of detections, as the page writes it."""
    return UNKNOWN if figure["value"] is None else f"{figure['value']:g}"


def costs(cost: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """What a method cost, in `COSTS`' order, as the page writes it."""
    erase, added, size, peak = (cost[name] for name in ("erase_seconds", "added_seconds", "bytes", "peak_memory"))
    return (
        UNKNOWN if erase is None else f"{erase:.1f} s",
        UNKNOWN if added is None else f"{1000 * added:+.0f} ms",
        UNKNOWN if size is None else f"{size / 1000:.1f} kB",
        UNKNOWN if peak is None else f"{peak / 1e9:.2f} GB",
    )


def cut_prompts(method: Mapping[str, Any]) -> str:
    """How many of a method's prompts the model does not read to their end, and in how many of them it does not read
    the concept, in words."""
    said = f"{method['cut']} of {method['pictures']} prompts are longer than the model reads"
    if unread := len(method["unread"]):
        said += f"; {unread} of all name the concept only past that, and count as not erased"
    return said
