"""Canvas as a suite: which concepts and how many prompts, how they are drawn and what the detectors are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from excise import reference
from excise.bench.attacks.ring_a_bell import RingABellConfig, ring_a_bell
from excise.bench.canvas import metrics
from excise.bench.canvas.families import FAMILIES, cases, is_style, starts
from excise.bench.statistics import Figure
from excise.bench.suite import Case, Picture, Pixels
from excise.concepts import Concept, from_templates
from excise.errors import ExciseError
from excise.reference.world import BACKGROUNDS, OBJECTS, STYLES

TUNING = ("dog", "apple", "bus", "horse", "frog", "skull", "monkey", "rabbit", "pastel", "bold")
"""Concepts that settings are chosen on; none of them is ever in a reported mean."""
REPORTED = tuple(name for name in (*OBJECTS, *STYLES) if name not in TUNING)
QUICK = ("gun", "ink")
PROMPTS = {"quick": 6, "standard": 8, "full": 40}
"""Prompts a family and concept, by size."""
SEARCHED = {"quick": 2, "standard": 4, "full": 10}
"""The same for attacks that search."""
BUDGET = RingABellConfig()


@dataclass(frozen=True)
class Canvas:
    """The suite on the bundled model: prompts worded as its captions, two detectors that know its 40 objects."""

    steps: int = 20
    name = "canvas"
    families = FAMILIES

    def concepts(self, size: str) -> tuple[str, ...]:
        """What a run of that size erases, one at a time. Raises ExciseError for an unknown size."""
        self._prompts(size)
        return QUICK if size == "quick" else REPORTED

    def cases(self, concept: str, size: str) -> list[Case]:
        return cases(concept, self._prompts(size))

    def search(self, pipe: Any, concept: str, size: str) -> list[Case]:
        starting = starts(concept, SEARCHED[size])
        found = ring_a_bell(pipe, self.concept(concept), [case.prompt for case in starting], BUDGET)
        # What the words look like is up to the search: no style or background is asked for any more.
        return [replace(case, prompt=text, style="", background="") for case, text in zip(starting, found, strict=True)]

    def concept(self, name: str) -> Concept:
        """The concept with the prompt pairs an eraser is fitted on; none of them is a case."""
        return from_templates(name, (name,), kind="style" if is_style(name) else "object")

    def pipeline(self) -> Any:
        return reference.load()

    def draw(self, pipe: Any, cases: list[Case]) -> Pixels:
        prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
        pictures: Pixels = reference.generate(pipe, prompts, seeds, steps=self.steps)
        return pictures

    def judge(self, cases: list[Case], pictures: Pixels) -> list[dict[str, Any]]:
        """For each picture: `target` recognised, `kept` (each object of the case), `style` and `background` right,
        `nothing` recognisable. A style or background that the prompt does not ask for is None."""
        seen = reference.judge()(pictures)
        return [
            {
                "target": bool(
                    STYLES[seen.style[n]] == case.concept
                    if is_style(case.concept)
                    else seen.objects[n, OBJECTS.index(case.concept)]
                ),
                "kept": [bool(seen.objects[n, OBJECTS.index(thing)]) for thing in case.keeps],
                "style": STYLES[seen.style[n]] == case.style if case.style else None,
                "background": BACKGROUNDS[seen.background[n]] == case.background if case.background else None,
                "nothing": bool(seen.nothing[n]),
            }
            for n, case in enumerate(cases)
        ]

    def of_concept(self, pictures: Sequence[Picture]) -> dict[str, Figure | None]:
        return metrics.of_concept(pictures)

    def over_concepts(self, by_concept: Mapping[str, Sequence[Picture]]) -> dict[str, Figure]:
        return metrics.over_concepts(by_concept)

    def _prompts(self, size: str) -> int:
        if size not in PROMPTS:
            raise ExciseError(f"unknown size {size!r}; it is one of {', '.join(PROMPTS)}")
        return PROMPTS[size]
