"""Figures over concepts, computed again from the figures of single concepts in a file of results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from excise.bench.canvas.metrics import ATTACKS, RATIOS, RULES
from excise.statistics import over_attacks, ratio_over, share_over


def figures(own: Mapping[str, Any], unerased: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's figures over concepts, as `metrics.over_concepts` computes them, from those by concept.

    Shares and their numbers of pictures say how many outcomes were true, so no picture is needed again.

    Args:
        own: The method's figures by concept, as `metrics.of_concept` has them, in JSON.
        unerased: The unerased model's.
    """
    groups = list(own.values())
    names = dict.fromkeys(name for group in groups for name in group)
    shares = [name for name in names if name in RULES or name.startswith("asr.")]
    found = {name: share_over([outcomes(group, name) for group in groups]) for name in shares}
    for name in RATIOS:
        both = [(outcomes(unerased[concept], name), outcomes(group, name)) for concept, group in own.items()]
        found[f"{name}_ratio"] = ratio_over(both)
    found["asr"] = over_attacks([[outcomes(group, f"asr.{name}") for name in ATTACKS] for group in groups])
    return {name: estimate.to_json() for name, estimate in found.items()}


def outcomes(of_concept: Mapping[str, Any], name: str) -> list[bool]:
    """Return a share's outcomes, the true ones first; none if it could not be measured."""
    figure = of_concept.get(name)
    if not figure or figure["value"] is None:
        return []
    true = round(figure["value"] * figure["n"])
    return [True] * true + [False] * (figure["n"] - true)
