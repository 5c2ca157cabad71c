"""An SNCE eraser's strength in words: one number that says how far, and what it comes to in codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

LEAST_CARRIED = 0.25
"""A neuron that carries less of the concept's change than this is turned down as far as if it carried so much."""


def in_words(lam: float, site: str, created: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """`strength 1.25 (1.89 in codes: the neuron carries 66 % of the change)` for an edit of `lam` codes at a Site.

    `created` and `measured` are the eraser's own. An edit whose strength was given in codes has that alone.
    """
    config = next((c for c in _mappings(created) if "unit" in c and "lam" in c), {})
    asked, carried = config.get("lam"), _carried(measured, site)
    counted = config.get("unit") == "concept" and config.get("source") == "prompt"
    if not counted or not isinstance(asked, float | int) or carried is None:
        return f"strength {lam:.3g} in codes"
    alone = len(config.get("neurons") or ()) < 2 and config.get("k", 1) == 1
    carry = "the neuron carries" if alone else "the neurons carry"
    said = f"{lam:.2f} in codes: {carry} {100 * carried:.0f} % of the change"
    if carried < LEAST_CARRIED:
        said += f", and is turned down as if by {100 * LEAST_CARRIED:.0f} %, the most there is"
    return f"strength {asked:g} ({said})"


def _carried(measured: Mapping[str, Any], site: str) -> float | None:
    """The share of the concept's change that an edit carries: of one Site, of several, or of one of several methods."""
    for found in _mappings(measured):
        encoders = found.get("encoders")
        own = encoders.get(site) if isinstance(encoders, Mapping) else found
        carried = own.get("carried") if isinstance(own, Mapping) else None
        if isinstance(carried, float | int):
            return float(carried)
    return None


def _mappings(data: Any) -> Iterator[Mapping[str, Any]]:
    """The mapping and every one in it, outer ones first."""
    if isinstance(data, Mapping):
        yield data
    for inner in data.values() if isinstance(data, Mapping) else data if isinstance(data, list) else ():
        yield from _mappings(inner)
