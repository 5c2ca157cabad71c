"""Pictures of the unerased model that are taken over instead of generated, and the check of a few of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excise.bench.items import blocks
from excise.bench.items.cases import all_cases, block_file, cut, is_searched
from excise.bench.pictures import from_png
from excise.bench.run import BASELINE, Record, Run, Unit
from excise.bench.suite import Case, Suite
from excise.drawn import Drawn
from excise.errors import ExciseError
from excise.files import sha256

CHECKED = 0.01
"""Share of a unit's pictures taken over that are generated again as a check."""


class UnlikePicture(Exception):
    """Error for a picture taken over that has other bits than the one generated as a check."""


@dataclass(frozen=True)
class Taken:
    """A batch that was generated before."""

    drawn: Drawn
    seconds: float
    """Seconds per picture that generating them took."""
    records: Sequence[Record]


class Reusing:
    """Batches of the unerased model in a run, by all that their pictures depend on."""

    def __init__(self, run: Run, suite: Suite) -> None:
        self._run, self._suite = run, suite
        self._places: dict[tuple[object, ...], list[tuple[Unit, int, tuple[str, ...]]]] = {}
        self._listed: set[Unit] = set()

    def find(self, unit: Unit, batch: Sequence[Case], drawn_with: str) -> Taken | None:
        """Return a batch of the same prompts, seeds and settings in the same order, generated on the same hardware.

        Return None if the unerased model has generated it in no unit, or in none before `unit` if that is one of its
        own: no two records may name each other. Batches are taken over whole, so that every picture has the bits that
        it would have if it were generated.

        Raises:
            ExciseError: A picture is not the one that its record names.
        """
        self._list()
        plain = [own for own in self._run.all_units if own.method == BASELINE]
        before = plain[: plain.index(unit)] if unit in plain else plain
        for place, number, cases in self._places.get(equal_key(self._suite, batch), ()):
            file = block_file(self._run.folder, place, number)
            if place in before and file.exists() and (taken := self._read(file, cases, drawn_with)) is not None:
                return taken
        return None

    def _read(self, file: Path, cases: Sequence[str], drawn_with: str) -> Taken | None:
        """Read a batch from a block, if it is there and was generated on the same hardware. Raises as `find`."""
        by_case = {row["case"]: row for row in blocks.read_records(file)}
        if not by_case.keys() >= set(cases):
            return None
        records = [by_case[case] for case in cases]
        if any(record.get("drawn_with") != drawn_with for record in records):
            return None
        pictures = [from_png(blocks.read_picture(file, case)) for case in cases]
        for record, picture in zip(records, pictures, strict=True):
            if sha256(picture.tobytes()) != record["picture"]:
                what = f"the picture of {record['case']} in {file} is not the one of its record"
                raise ExciseError(f"{what}; delete the file and resume the run")
        drawn = Drawn(Drawn.of(pictures).pixels, tuple(record["fault"] for record in records))
        return Taken(drawn, sum(record["seconds"] for record in records) / len(records), records)

    def _list(self) -> None:
        """List the batches of the baseline's units whose cases are all known."""
        for unit in self._run.all_units:
            if unit.method != BASELINE or unit in self._listed:
                continue
            if is_searched(self._run, unit.concept) and is_searched(self._run, unit.file):
                self._listed.add(unit)
                for number, block in enumerate(cut(self._suite, all_cases(self._run, self._suite, unit))):
                    for batch in block:
                        place = unit, number, tuple(case.id for case in batch)
                        self._places.setdefault(equal_key(self._suite, batch), []).append(place)


def equal_key(suite: Suite, batch: Sequence[Case]) -> tuple[object, ...]:
    """Return all that the pictures of a batch depend on. A suite without `calls` may draw each family otherwise."""
    by_family = not hasattr(suite, "calls")
    return tuple((_key(case), case.family if by_family else "") for case in batch)


def _key(case: Case) -> tuple[Any, ...]:
    plain = case.family == "vocabulary-unerased"
    return case.prompt, case.seed, case.guidance, case.width, case.height, case.learnt, case.constants, plain


def chosen_to_check(unit: Unit, reused: Iterable[str]) -> set[str]:
    """Return the cases to check of those that were taken over: 1 %, rounded up, the same ones every time."""
    by_hash = sorted(reused, key=lambda case: sha256(f"{unit.file} {case}".encode()))
    return set(by_hash[: math.ceil(CHECKED * len(by_hash))])


def is_disproved(run: Run, unit: Unit) -> bool:
    """Return whether the check of a unit's pictures that were taken over failed."""
    return (run.folder / "failures" / f"check-{unit.file}.json").exists()


def check_alike(folder: Path, unit: Unit, cases: Sequence[Case], drawn: Drawn, records: dict[str, Record]) -> None:
    """Compare generated pictures with those taken over. Raises UnlikePicture for the first with other bits."""
    for case, picture in zip(cases, drawn.pixels, strict=True):
        if "reused" in records[case.id] and sha256(picture.tobytes()) != records[case.id]["picture"]:
            raise UnlikePicture(
                f"the picture of {case.id}, taken over from the unerased model, differs from the one generated as a "
                f"check, so none can be trusted; delete {folder / 'blocks'} and resume the run with --retry"
            )
