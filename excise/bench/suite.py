"""Suite: what is drawn and what is looked for. A case is one picture; a suite lists cases and judges their pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from excise.bench.pictures import Pixels, read
from excise.bench.statistics import Estimate
from excise.concepts import Concept
from excise.drawn import Drawn
from excise.pipeline import Pipeline

Role = Literal["target", "attack", "white-box", "keep", "mixed"]
"""What a family is for: the concept must go (said plainly, by an attack, or by one that knows the eraser), nothing may
change, or both at once."""


@dataclass(frozen=True)
class Family:
    """A kind of prompt within a suite."""

    name: str
    role: Role
    title: str
    """One line for a reader of the report."""


@dataclass(frozen=True)
class Case:
    """One picture to draw, the same for every method."""

    id: str
    """Unique in its suite, and a valid file name: `gun.direct.003`."""
    concept: str
    family: str
    prompt: str
    seed: int
    """Of a generator on the CPU."""
    keeps: tuple[str, ...] = ()
    """Objects that must stay in the picture."""
    style: str = ""
    """The style the prompt asks for; empty where it asks for none."""
    background: str = ""
    """The background the prompt asks for; empty where it asks for none."""
    guidance: float | None = None
    """Of its own, where its source gives one."""
    width: int | None = None
    height: int | None = None
    learnt: tuple[float, ...] = ()
    """The embedding `[d]` of `inversion.WORD`, where the attack learnt that word and the prompt holds it."""

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Case:
        """The case that `dataclasses.asdict` wrote as json."""
        return cls(**{**row, "keeps": tuple(row["keeps"]), "learnt": tuple(row.get("learnt", ()))})


@dataclass(frozen=True)
class Picture:
    """One case under one method, beside the same case of the unerased model."""

    case: Case
    seen: dict[str, Any]
    """What the detectors see in it."""
    unerased: dict[str, Any]
    """What they see in the unerased model's."""
    identical: bool
    path: Path
    unerased_path: Path

    def pixels(self) -> Pixels:
        """`[height, width, 3]`"""
        return read(self.path)

    def unerased_pixels(self) -> Pixels:
        """`[height, width, 3]`"""
        return read(self.unerased_path)


class Suite(Protocol):
    """Prompts with seeds, and detectors. Its cases depend on its name, the size and the concept alone."""

    @property
    def name(self) -> str: ...

    @property
    def families(self) -> tuple[Family, ...]: ...

    @property
    def batch(self) -> int:
        """Pictures drawn together, and so the most that a killed worker loses."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """As json, all that the same suite can be made of again."""
        ...

    @property
    def disclosed(self) -> Mapping[str, str]:
        """What a reader must know to trust the figures: how good the detectors are, what the attacks may spend."""
        ...

    def concepts(self, size: str) -> tuple[str, ...]:
        """What a run of that size erases, one at a time. Raises ExciseError for an unknown size."""
        ...

    def cases(self, concept: str, size: str) -> list[Case]:
        """The pictures to draw for `concept` that need no search. Raises ExciseError for an unknown concept or size."""
        ...

    def search(self, pipe: Pipeline, concept: str, size: str) -> list[Case]:
        """Further cases, found by attacks on the unerased `pipe`: the same for every method."""
        ...

    def attack(self, pipe: Pipeline, concept: str, size: str) -> list[Case]:
        """Further cases, found by white-box attacks on `pipe` with its eraser attached: each method has its own."""
        ...

    def baseline(self, concept: str, size: str) -> list[Case]:
        """Further cases for the unerased model alone: those of `attack` before anybody attacked, and what shows how
        much its own pictures differ from seed to seed."""
        ...

    def concept(self, name: str) -> Concept:
        """The concept with the prompt pairs an eraser is fitted on."""
        ...

    def draw(self, pipe: Pipeline, cases: list[Case]) -> Drawn | Pixels:
        """Pictures `[n, height, width, 3]`; the same bits every time on one machine. Of bare pixels no more can be
        told than whether a picture has one colour."""
        ...

    def judge(self, cases: list[Case], pictures: Pixels) -> list[dict[str, Any]]:
        """What the detectors say of each picture, as json; broken ones are not shown to them. Raises where a detector
        fails."""
        ...

    def of_concept(self, pictures: Sequence[Picture]) -> dict[str, Estimate | None]:
        """Every figure of one method on one concept; None where it cannot be tested."""
        ...

    def over_concepts(self, by_concept: Mapping[str, Sequence[Picture]]) -> dict[str, Estimate]:
        """Every figure of one method, as a mean over concepts or over all their pictures."""
        ...
