"""The probes as a suite: `excise bench run probes`, and what `excise probe` prints.

A prompt of a probe is drawn with each of the probe's constants, and is a hit if any of these pictures is: the best of
all, as the published probes count. A picture is a hit if it shows the target; `leakage` asks something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch

from excise.bench.canvas.families import cases
from excise.bench.canvas.metrics import TESTABLE
from excise.bench.canvas.sizes import FROZEN, QUICK, REPORTED, STANDARD
from excise.bench.canvas.suite import Canvas
from excise.bench.latents import decoded
from excise.bench.probes import leakage
from excise.bench.probes.probes import PROBES, Work
from excise.bench.suite import Case, Picture
from excise.concepts import Concept
from excise.drawn import Drawn, Pixels
from excise.erasers.requests import generating
from excise.errors import ExciseError
from excise.pipeline import Pipeline
from excise.statistics import Estimate, over_attacks, share, share_over

PROMPTS = {"quick": 2, "standard": 8, "frozen": 8, "full": 24}
"""Prompts per probe and concept, by size."""


@dataclass(frozen=True)
class Probes:
    """Suite on the bundled model: what it can still draw of a concept, other than by the wording of a prompt."""

    steps: int = 20
    """Denoising steps per picture."""
    prompts: int | None = None
    """Prompts per probe and concept; None for the size's number."""
    only: tuple[str, ...] = ()
    """Probes to run; empty for all of them."""
    batch: int = 8
    """Pictures per batch; smaller batches are padded to it."""
    name = "probes"
    families = tuple(probe.family for probe in PROBES.values())

    def __post_init__(self) -> None:
        object.__setattr__(self, "only", tuple(self.only))
        if odd := set(self.only) - PROBES.keys():
            raise ExciseError(f"there is no probe {odd.pop()!r}; choose from {', '.join(PROBES)}")

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"steps": self.steps, "prompts": self.prompts, "only": list(self.only), "batch": self.batch}

    @property
    def disclosed(self) -> Mapping[str, str]:
        judges = {name: says for name, says in Canvas().disclosed.items() if "judge" in name}
        tried = "; ".join(
            f"{name}: {', '.join('/'.join(f'{value:g}' for value in one) for one in probe.constants)}"
            for name, probe in PROBES.items()
            if probe.constants != ((),)
        )
        moved = (
            f"of the partner's half without background, at least {leakage.LEAK:.0%} has colours that only the target's "
            f"drawing has; unerased, at most {leakage.OWN:.0%}"
        )
        return {**judges, "constants (the best picture counts)": tried, "leakage": moved}

    def concepts(self, size: str) -> tuple[str, ...]:
        self._prompts(size)
        return {"quick": QUICK, "standard": STANDARD, "frozen": FROZEN}.get(size, REPORTED)

    def cases(self, concept: str, size: str) -> list[Case]:
        cases(concept, 0)  # refuses an unknown concept
        rows: list[Case] = []
        for name in self.only or PROBES:
            plain = PROBES[name].write(concept, name, self._prompts(size))
            rows += [
                replace(case, id=f"{case.id}.{n}", constants=constants)
                for n, constants in enumerate(PROBES[name].constants)
                for case in plain
            ]
        return rows

    def search(self, pipe: Pipeline, concept: str, size: str) -> list[Case]:
        return []

    def attack(self, pipe: Pipeline, concept: str, size: str) -> list[Case]:
        return []

    def baseline(self, concept: str, size: str) -> list[Case]:
        return []

    def concept(self, name: str) -> Concept:
        """Return the concept with the prompt pairs to fit an eraser on."""
        return Canvas().concept(name)

    def draw(self, pipe: Pipeline, cases: list[Case]) -> Drawn:
        """Generate pictures `[n, 64, 64, 3]`, in batches of one probe with the same constants."""
        drawn: dict[str, Drawn] = {}
        for (name, constants), some in groupby(sorted(cases, key=_kind), _kind):
            group = list(some)
            for start in range(0, len(group), self.batch):
                part = group[start : start + self.batch]
                padded = part + part[-1:] * (self.batch - len(part))
                with generating(), torch.no_grad():
                    made = PROBES[name].draw(Work.of(pipe, padded, self.steps), *constants)
                    pixels = decoded(pipe, made).add(1).div(2).permute(0, 2, 3, 1).cpu().numpy()
                pictures = Drawn.of(pixels)
                drawn |= {case.id: pictures[n : n + 1] for n, case in enumerate(part)}
        return Drawn.joined([drawn[case.id] for case in cases])

    def judge(self, cases: list[Case], pictures: Pixels) -> list[dict[str, Any]]:
        """Return both judges' verdicts, as Canvas does, and what a probe measures besides."""
        rows = zip(cases, Canvas().judge(cases, pictures), pictures, strict=True)
        return [row | PROBES[case.family].measure(case, picture) for case, row, picture in rows]

    def of_concept(self, pictures: Sequence[Picture]) -> dict[str, Estimate | None]:
        """Return `drawn.P`, how often the unerased model generates the target by probe P, and `asr.P`, how often it is
        still there of those; None if the unerased model generates it too rarely. Of `leakage`, return `able.leakage`,
        how often an unerased picture can show a leak later, and `leaked.leakage`, how often the erased one does."""
        figures: dict[str, Estimate | None] = {}
        for name, probe in PROBES.items():
            prompts = by_prompt(pictures, name)
            if not prompts:
                continue
            counted = share([before for before, _ in prompts])
            figures[probe.unerased] = counted
            figures[probe.figure] = share(still(prompts)) if counted.value >= TESTABLE else None
        return figures

    def over_concepts(self, by_concept: Mapping[str, Sequence[Picture]]) -> dict[str, Estimate]:
        groups = [{name: testable(by_prompt(own, name)) for name in PROBES} for own in by_concept.values()]
        figures = {probe.figure: share_over([own[name] for own in groups]) for name, probe in PROBES.items()}
        asking = [name for name, probe in PROBES.items() if probe.asks == "asr"]
        return figures | {"asr": over_attacks([[own[name] for name in asking] for own in groups])}

    def _prompts(self, size: str) -> int:
        if size not in PROMPTS:
            raise ExciseError(f"unknown size {size!r}; choose one of {', '.join(PROMPTS)}")
        return PROMPTS[size] if self.prompts is None else self.prompts


def _kind(case: Case) -> tuple[str, tuple[float, ...]]:
    return case.family, case.constants


def by_prompt(pictures: Iterable[Picture], probe: str) -> list[tuple[bool, bool]]:
    """Return, for each prompt of a probe, whether any unerased picture of it counts, and whether any of the method's is
    a hit: for most probes, whether it shows the target."""
    found: dict[int, tuple[bool, bool]] = {}
    for picture in pictures:
        if picture.case.family == probe:
            before, after = found.get(picture.case.seed, (False, False))
            counts, hit = PROBES[probe].counts(picture.unerased), PROBES[probe].hit(picture.seen)
            found[picture.case.seed] = before or counts, after or hit
    return list(found.values())


def still(prompts: Iterable[tuple[bool, bool]]) -> list[bool]:
    """Return, for each prompt that counts, whether it is a hit for the method: for most probes, for each from which the
    unerased model generates the target, whether the method does."""
    return [after for before, after in prompts if before]


def testable(prompts: Sequence[tuple[bool, bool]]) -> list[bool]:
    """Return `still`, or nothing if too few of the prompts count."""
    enough = prompts and sum(before for before, _ in prompts) >= TESTABLE * len(prompts)
    return still(prompts) if enough else []
