"""Cases and pictures of a run: what its suite and its searches ask for, cut into blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from excise.bench.items import blocks
from excise.bench.run import Run, Unit, checked_name
from excise.bench.suite import Case, Suite, checked_case, in_batches, read_saved
from excise.errors import ExciseError
from excise.files import write_once

BLOCK = 16
"""Pictures in a block, or a batch if that has more."""


def all_cases(run: Run, suite: Suite, unit: Unit) -> list[Case]:
    """Return every case of a unit known so far: the suite's, and those found by attacks."""
    return suite.cases(unit.concept, run.plan["size"]) + _found(run, unit.concept) + _found(run, unit.file)


def cut(suite: Suite, cases: Sequence[Case]) -> list[list[list[Case]]]:
    """Cut a unit's cases into blocks, of whole batches: a batch's pictures may depend on what is in it.

    The pictures of a batch have one size and guidance (`in_batches`).
    """
    batches = in_batches(cases, suite.batch)
    size = max(1, BLOCK // suite.batch)
    return [batches[start : start + size] for start in range(0, len(batches), size)]


def is_searched(run: Run, name: str) -> bool:
    """Return whether the search of this name, a concept's or a unit's, is done."""
    return searched(run.folder, name).exists()


def searched(folder: Path, name: str) -> Path:
    """Return the file with the cases of a search, in a run's folder."""
    return folder / "searched" / f"{checked_name(name)}.json"


def save_searched(run: Run, name: str, cases: Sequence[Case]) -> None:
    """Save the cases of a search. Of two that save at the same time, the first one's stay."""
    run.write(searched(run.folder, name), json.dumps([asdict(case) for case in cases], indent=1) + "\n", once=True)


def _found(run: Run, name: str) -> list[Case]:
    """Return the cases that a search saved in the run's folder; none before it is done."""
    path = searched(run.folder, name)
    return [Case.from_json(row) for row in read_saved(path, list)] if path.exists() else []


def block_file(folder: Path, unit: Unit, number: int) -> Path:
    """Return the file of a unit's block, in a run's folder."""
    return folder / "blocks" / checked_name(unit.file) / f"{number:05d}.zip"


def checked_file(folder: Path, unit: Unit) -> Path:
    """Return the file that says which of a unit's pictures were checked, in a run's folder."""
    return folder / "checked" / f"{checked_name(unit.file)}.json"


def picture_of(run: Run, unit: Unit, case: str) -> Path:
    """Return the path of a case's picture, which is taken out of its block if it is in one.

    Raises ExciseError for a case id that is not the name of a file, and for a link: a run from a stranger could write
    and read outside its folder.
    """
    folder = run.folder / "pictures" / checked_name(unit.file)
    path = folder / f"{checked_case(case)}.png"
    for link in (folder, path):
        if link.is_symlink():
            raise ExciseError(f"{link} is a link; a run may hold none")
    if not path.exists():
        files = blocks.files(run.folder, unit.file)
        if (block := _blocks_by_case(tuple(files)).get(case)) is not None:
            write_once(path, blocks.read_picture(block, case))
    return path


@lru_cache(maxsize=64)
def _blocks_by_case(files: tuple[Path, ...]) -> dict[str, Path]:
    return {record["case"]: path for path in files for record in blocks.read_records(path)}
