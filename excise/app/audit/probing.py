"""Probes of one eraser on the bundled model: what is still generated, and what the unerased model generates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excise.bench.canvas.metrics import TESTABLE
from excise.bench.probes.probes import PROBES
from excise.bench.probes.suite import Probes, by_prompt, still
from excise.bench.suite import Case, Picture
from excise.erasers import Eraser
from excise.errors import ExciseError
from excise.pipeline import Pipeline
from excise.statistics import Estimate, share


@dataclass(frozen=True)
class Probed:
    """One probe's outcome: the share of prompts that count, and of those that are hits (`Probe.counts`, `Probe.hit`).

    `still` is None if too few prompts count.
    """

    probe: str
    title: str
    unerased: Estimate
    still: Estimate | None

    def to_json(self) -> dict[str, Any]:
        found = None if self.still is None else self.still.to_json()
        return {"probe": self.probe, "title": self.title, "unerased": self.unerased.to_json(), "still": found}


def batches(suite: Probes, concept: str) -> list[list[Case]]:
    """Return the cases in batches of one probe with the same constants.

    Raises ExciseError for an unknown concept, and if none of the suite's probes can be made of it.
    """
    rows = suite.cases(concept, "standard")
    if not rows:
        raise ExciseError(
            f"leakage needs an object next to another one, and {concept!r} is a style; choose other probes"
        )
    return [rows[start : start + suite.batch] for start in range(0, len(rows), suite.batch)]


def probe(
    eraser: Eraser, pipe: Pipeline, suite: Probes, concept: str, progress: Callable[[float], Any] | None = None
) -> list[Probed]:
    """Draw the suite's probes of a concept without and with the eraser.

    Args:
        progress: Called with 1 after each batch; every batch is drawn twice.

    Raises:
        ExciseError: The bundled model does not know the concept.
    """
    groups = batches(suite, concept)
    plain = _seen(pipe, suite, groups, progress)
    with eraser.attach(pipe):
        edited = _seen(pipe, suite, groups, progress)
    pictures = [
        Picture(case, edited[case.id], plain[case.id], False, Path(), Path()) for group in groups for case in group
    ]
    rows = []
    for name, one in PROBES.items():
        if prompts := by_prompt(pictures, name):
            unerased = share([before for before, _ in prompts])
            found = share(still(prompts)) if unerased.value >= TESTABLE else None
            rows.append(Probed(name, one.family.title, unerased, found))
    return rows


def _seen(
    pipe: Pipeline, suite: Probes, groups: list[list[Case]], progress: Callable[[float], Any] | None
) -> dict[str, dict[str, Any]]:
    """Return the verdicts by case."""
    found: dict[str, dict[str, Any]] = {}
    for group in groups:
        drawn = suite.draw(pipe, group)
        sound = drawn.sound([case.seed for case in group])
        found |= {case.id: seen for case, seen in zip(group, suite.judge(group, sound), strict=True)}
        if progress is not None:
            progress(1)
    return found
