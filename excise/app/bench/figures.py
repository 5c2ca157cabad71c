"""Formatting of a run's figures for its page and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNKNOWN = "n/a"
"""Shown for a figure that was not measured."""
COSTS = ("Time to erase", "Added per picture", "Eraser size", "Peak memory")


def measured_of(names: Mapping[str, str], measured: Mapping[str, Any]) -> dict[str, str]:
    """Return those of the figures that this run has measured for any method, with their titles."""
    figures = [method["figures"] for method in measured["methods"].values()]
    return {n: says for n, says in names.items() if any((one.get(n) or {}).get("value") is not None for one in figures)}


def percent(figure: Mapping[str, Any] | None) -> str:
    """Format a share in per cent."""
    return UNKNOWN if not figure or figure["value"] is None else f"{100 * figure['value']:.1f} %"


def interval(figure: Mapping[str, Any] | None) -> str:
    """Format a share's interval in per cent, or return "" if it has none."""
    if not figure or figure["value"] is None or figure["low"] is None:
        return ""
    return f"{100 * figure['low']:.0f} to {100 * figure['high']:.0f}"


def plain(figure: Mapping[str, Any] | None) -> str:
    """Format a figure that is not a share."""
    return UNKNOWN if not figure or figure["value"] is None else f"{figure['value']:.3g}"


def count(figure: Mapping[str, Any]) -> str:
    """Format a number of detections."""
    return UNKNOWN if figure["value"] is None else f"{figure['value']:g}"


def costs(cost: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Format a method's costs, in the order of `COSTS`."""
    erase, added, size, peak = (cost[name] for name in ("erase_seconds", "added_seconds", "bytes", "peak_memory"))
    return (
        UNKNOWN if erase is None else f"{erase:.1f} s",
        UNKNOWN if added is None else f"{1000 * added:+.0f} ms",
        UNKNOWN if size is None else f"{size / 1000:.1f} kB",
        UNKNOWN if peak is None else f"{peak / 1e9:.2f} GB",
    )


def reused_pictures(method: Mapping[str, Any]) -> str:
    """Describe how many of a method's pictures were taken over from the unerased model, and how many were checked."""
    count, checked = method["reused"]["pictures"], method["reused"]["checked"]
    return (
        f"{count} of {method['pictures']} pictures were taken over from the unerased model, as the eraser leaves "
        f"everything that the denoiser is given; {checked} of them were generated as a check"
        + (f", which {other} of other hardware could not be" if (other := method["reused"].get("elsewhere")) else "")
    )


def unlike_pictures(method: Mapping[str, Any]) -> str:
    """Say why `identical` is not stated: pictures and unerased pictures were not generated alike."""
    count, how = method["unlike"]["pictures"], method["unlike"]["how"]
    return f"identical is not stated: {count} pictures were generated otherwise than their unerased ones ({how})"


def cut_prompts(method: Mapping[str, Any]) -> str:
    """Describe how many of a method's prompts are truncated, and how many lose the concept's name by that."""
    text = f"{method['cut']} of {method['pictures']} prompts are longer than the model reads"
    if unread := len(method["unread"]):
        text += f"; {unread} name the concept only in the part that is cut off, and count as not erased"
    return text
