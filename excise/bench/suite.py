"""Suite: the pictures to generate and how to judge them. A case is one picture; a suite lists and judges cases."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from excise.bench.pictures import Pixels, read
from excise.concepts import Concept
from excise.drawn import Drawn
from excise.errors import ExciseError, reason, shown
from excise.files import read_json
from excise.pipeline import Pipeline
from excise.statistics import Estimate

Role = Literal["target", "attack", "white-box", "keep", "mixed"]
"""Purpose of a family: the concept must go ("target": plain prompts, "attack", "white-box": attacks that know the
eraser), nothing may change ("keep"), or both ("mixed")."""


@dataclass(frozen=True)
class Family:
    """Kind of prompt within a suite."""

    name: str
    role: Role
    title: str
    """One-line description for the report."""


_CASE = re.compile(r"(?!\.)[A-Za-z0-9._-]+")


def checked_case(name: Any) -> str:
    """Return the id of a case. Raises ExciseError if it could lead out of the run's folder."""
    if isinstance(name, str) and _CASE.fullmatch(name):
        return name
    raise ExciseError(
        f"the case id {shown(name)} is not valid; only letters, digits and ._- may be in it, and no dot first"
    )


_Kind = TypeVar("_Kind", dict[str, Any], list[Any])


def read_saved(path: Path, kind: type[_Kind]) -> _Kind:
    """Return the object or the list in a JSON file of a run. Raises ExciseError if the file holds anything else."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ExciseError(f"cannot read {path} ({reason(error)}); start another run") from error
    if not isinstance(content, kind):
        raise ExciseError(f"{path} holds another thing than a {kind.__name__}; start another run")
    return content


_PARTS: dict[str, type | tuple[type, ...]] = {
    "suite": str, "size": str, "settings": dict, "configurations": dict, "weights": dict, "concepts": list,
    "methods": list, "model": (str, type(None)), "sae": (str, type(None)),
}  # fmt: skip
"""Parts of a run's plan, and their kinds."""


def check_plan(plan: Mapping[str, Any], path: Path) -> None:
    """Raise ExciseError if a part of the plan in `path` is of another kind than `Run.create` writes."""
    for name, kind in _PARTS.items():
        texts = plan[name] if name in plan and kind is list else ()
        if name in plan and not (isinstance(plan[name], kind) and all(isinstance(text, str) for text in texts)):
            raise ExciseError(f"{path} is damaged ({name} is {shown(plan[name])}); start another run")


@dataclass(frozen=True)
class Case:
    """One picture to generate, the same for every method."""

    id: str
    """Unique in its suite, of ASCII letters, digits and ._- without a dot first: `gun.direct.003`."""
    concept: str
    family: str
    prompt: str
    seed: int
    """Seed of a generator on the CPU."""
    keeps: tuple[str, ...] = ()
    """Objects that must stay in the picture."""
    style: str = ""
    """Style that the prompt asks for; empty for none."""
    background: str = ""
    """Background that the prompt asks for; empty for none."""
    guidance: float | None = None
    """Guidance scale, if the source gives one."""
    width: int | None = None
    height: int | None = None
    learnt: tuple[float, ...] = ()
    """Embedding `[d]` of `inversion.WORD`, for prompts of the attack that learnt it."""
    constants: tuple[float, ...] = ()
    """Constants of a probe, such as a sampler's η."""

    @classmethod
    def from_json(cls, row: Any) -> Case:
        """Read a case written by `dataclasses.asdict` as JSON.

        Raises ExciseError for anything else, and if its id is not a valid file name: it may come from a stranger's run.
        """
        try:
            checked_case(row["id"])
            numbers = {name: tuple(map(float, row.get(name, ()))) for name in ("learnt", "constants")}
            case = cls(**{**row, "keeps": tuple(row["keeps"]), **numbers})
            texts = (case.concept, case.family, case.prompt, case.style, case.background, *case.keeps)
            sizes = (case.seed, *(size for size in (case.width, case.height) if size is not None))
            if not all(isinstance(text, str) for text in texts) or any(type(size) is not int for size in sizes):
                raise TypeError("a value is of another kind")
            if case.guidance is not None and type(case.guidance) not in (int, float):
                raise TypeError("the guidance is not a number")
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            raise ExciseError(f"a run's case is damaged ({reason(error)}); start another run") from error
        return case


def in_batches(cases: Sequence[Case], size: int) -> list[list[Case]]:
    """Cut cases into batches of at most `size`. All of a batch ask for the same size of picture and guidance.

    Cases that ask for none come first. Otherwise the order stays.
    """
    batches: list[list[Case]] = []
    for _, alike in groupby(sorted(cases, key=_asks), _asks):
        group = list(alike)
        batches += [group[start : start + size] for start in range(0, len(group), size)]
    return batches


def _asks(case: Case) -> tuple[float, ...]:
    return tuple(-1.0 if value is None else value for value in (case.width, case.height, case.guidance))


@dataclass(frozen=True)
class Picture:
    """One case under one method, with the same case of the unerased model."""

    case: Case
    seen: dict[str, Any]
    """The detectors' verdicts on it."""
    unerased: dict[str, Any]
    """Their verdicts on the unerased model's picture."""
    identical: bool
    path: Path
    unerased_path: Path

    def pixels(self) -> Pixels:
        """Read the picture, `[height, width, 3]`."""
        return read(self.path)

    def unerased_pixels(self) -> Pixels:
        """Read the unerased picture, `[height, width, 3]`."""
        return read(self.unerased_path)


class Suite(Protocol):
    """Prompts with seeds, and detectors. The cases depend only on the suite's name, the size and the concept.

    A suite may also have `calls(cases)`. It returns the cases of each call of the pipeline that `draw` makes for these
    cases; `draw` gives the same pictures for each of those lists alone. Then pictures of prompts that an eraser leaves
    untouched are taken over from the unerased model.
    """

    @property
    def name(self) -> str: ...

    @property
    def families(self) -> tuple[Family, ...]: ...

    @property
    def batch(self) -> int:
        """Pictures per batch. A batch's cases have one size and guidance."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings as JSON, enough to rebuild the suite."""
        ...

    @property
    def disclosed(self) -> Mapping[str, str]:
        """What a reader must know to trust the figures: the detectors' quality and the attacks' budgets."""
        ...

    def concepts(self, size: str) -> tuple[str, ...]:
        """Return the concepts that a run of this size erases, one at a time. Raises ExciseError for an unknown size."""
        ...

    def cases(self, concept: str, size: str) -> list[Case]:
        """Return the cases of `concept` that need no search. Raises ExciseError for an unknown concept or size."""
        ...

    def search(self, pipe: Pipeline, concept: str, size: str) -> list[Case]:
        """Return further cases, found by attacks on the unerased `pipe`: the same for every method."""
        ...

    def attack(self, pipe: Pipeline, concept: str, size: str) -> list[Case]:
        """Return further cases, found by white-box attacks on `pipe` with its eraser: each method has its own."""
        ...

    def baseline(self, concept: str, size: str) -> list[Case]:
        """Return further cases for the unerased model alone.

        They are the cases of `attack` before the search, and cases that show how its pictures vary with the seed.
        """
        ...

    def concept(self, name: str) -> Concept:
        """Return the concept with the prompt pairs to fit an eraser on."""
        ...

    def draw(self, pipe: Pipeline, cases: list[Case]) -> Drawn | Pixels:
        """Generate pictures `[n, height, width, 3]`, bit-identical every time on one machine.

        If bare pixels are returned, the only fault that can be detected is a picture of one colour.
        """
        ...

    def judge(self, cases: list[Case], pictures: Pixels) -> list[dict[str, Any]]:
        """Return the detectors' verdicts on each picture as JSON. They are not given broken pictures.

        Raises an error if a detector fails.
        """
        ...

    def of_concept(self, pictures: Sequence[Picture]) -> dict[str, Estimate | None]:
        """Return every figure of one method on one concept; None for one that cannot be tested."""
        ...

    def over_concepts(self, by_concept: Mapping[str, Sequence[Picture]]) -> dict[str, Estimate]:
        """Return every figure of one method, as a mean over concepts or over all their pictures."""
        ...
