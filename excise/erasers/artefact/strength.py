"""An SNCE eraser's strength in words: the configured strength, and its value in codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from excise.erasers.choices import REPLACEMENT

LEAST_CARRIED = 0.25
"""Lower bound on the share of the concept's change that a neuron is assumed to carry."""


def in_words(lam: float, site: str, created: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """Describe an edit of `lam` codes at a Site.

    For example: `strength 1.25 (1.89 in codes: the neuron carries 66 % of the change)`.

    `created` and `measured` are the eraser's. If its strength was configured in codes, only that is given.
    """
    config = next((c for c in _mappings(created) if "unit" in c and "lam" in c), {})
    configured, carried = config.get("lam"), _carried(measured, site)
    scaled = config.get("unit") == "concept" and config.get("source") == "prompt"
    if isinstance(instead := config.get("replace_with"), str) and REPLACEMENT.fullmatch(instead):
        return f"strength {lam:.3g} (1 is to “{instead}”)"
    if not scaled or not isinstance(configured, float | int) or carried is None:
        return f"strength {lam:.3g} in codes"
    alone = len(config.get("neurons") or ()) < 2 and config.get("k", 1) == 1
    carry = "the neuron carries" if alone else "the neurons carry"
    codes = f"{lam:.2f} in codes: {carry} {100 * carried:.0f} % of the change"
    if carried < LEAST_CARRIED:
        codes += f", and {100 * LEAST_CARRIED:.0f} % are assumed, which limits the strength"
    return f"strength {configured:g} ({codes})"


def _carried(measured: Mapping[str, Any], site: str) -> float | None:
    """Return the share of the concept's change that an edit carries, for one or several Sites or methods."""
    for found in _mappings(measured):
        encoders = found.get("encoders")
        entry = encoders.get(site) if isinstance(encoders, Mapping) else found
        carried = entry.get("carried") if isinstance(entry, Mapping) else None
        if isinstance(carried, float | int):
            return float(carried)
    return None


def _mappings(data: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the mapping and every one within it, outer ones first."""
    if isinstance(data, Mapping):
        yield data
    for inner in data.values() if isinstance(data, Mapping) else data if isinstance(data, list) else ():
        yield from _mappings(inner)
