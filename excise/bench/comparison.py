"""Paired comparison of methods: differences concept by concept, with p-values corrected for their number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from excise.bench.canvas.metrics import ATTACKS
from excise.bench.results import BASELINE
from excise.statistics import holm, sign_flip

LESS = ("target", "asr", "leaked", "vocabulary", "frechet", "pixel_error", "outside", "cost")
"""Beginnings of the names of figures that are better if they are smaller."""
LEVEL = 0.05
"""Largest adjusted p-value of a difference that counts as more than chance."""


@dataclass(frozen=True)
class Difference:
    """Difference of one method from another in one figure."""

    method: str
    figure: str
    mean: float
    """Mean over the concepts that both have, in the figure's unit."""
    concepts: int
    p: float
    """p-value of `sign_flip`, adjusted by Holm's rule for all differences of the comparison."""

    @property
    def better(self) -> bool | None:
        """Whether the method is better; None if the difference may be chance (p above `LEVEL`)."""
        if self.p > LEVEL:
            return None
        return self.mean < 0 if less_is_better(self.figure) else self.mean > 0


def less_is_better(figure: str) -> bool:
    """Return whether a smaller value of the figure is better."""
    return figure.startswith(LESS)


def compared(methods: Mapping[str, Mapping[str, Any]], figures: Iterable[str], against: str) -> list[Difference]:
    """Return the differences of all methods from `against` in these figures, method by method.

    Methods without values of single concepts, and figures that no concept of both has, are left out.

    Args:
        methods: Results by method, each with the figures of single concepts under `concepts`, as
            `excise.bench.results.results` returns them.
        figures: Names of figures.
        against: Method that the others are compared with.
    """
    if against not in methods:
        return []
    names = list(figures)
    found = [
        (label, name, values)
        for label, own in methods.items()
        for name in names
        if label not in (BASELINE, against) and (values := differences(methods[against], own, name))
    ]
    adjusted = holm([sign_flip(values) for *_, values in found])
    return [
        Difference(label, name, math.fsum(values) / len(values), len(values), p)
        for (label, name, values), p in zip(found, adjusted, strict=True)
    ]


def reach(found: Sequence[Difference]) -> str:
    """Return a sentence on what the tests can show.

    Over n concepts, a sign-flip test's p is at least 2 / 2^n, and Holm's rule multiplies the smallest of m by m.
    """
    concepts = max(one.concepts for one in found)
    least = 2 / 2**concepts
    if least * len(found) <= LEVEL:
        return f"A test over {concepts} concepts cannot see small differences."
    return (
        f"Over {concepts} concepts, p is at least {least:.2g}, and {min(1.0, least * len(found)):.2g} after the rule: "
        "these tests can show no difference, however large."
    )


def differences(first: Mapping[str, Any], second: Mapping[str, Any], figure: str) -> list[float]:
    """Return the second method's value minus the first one's for each concept that has both."""
    one, other = (
        {
            concept: value
            for concept, figures in own["concepts"].items()
            if (value := of_concept(figures, figure)) is not None
        }
        for own in (first, second)
    )
    return [other[concept] - value for concept, value in one.items() if concept in other]


def of_concept(figures: Mapping[str, Any], name: str) -> float | None:
    """Return a concept's value of a figure. `asr` is its mean over the attacks of Canvas that are testable."""
    if name == "asr" and "asr" not in figures:
        own = [figures.get(f"asr.{attack}") for attack in ATTACKS]
        values = [figure["value"] for figure in own if figure and figure["value"] is not None]
        return math.fsum(values) / len(values) if values else None
    found = figures.get(name)
    return found["value"] if found else None
