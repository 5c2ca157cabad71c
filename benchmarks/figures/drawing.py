"""Runs of a suite for scripts that compare methods: begun or opened, and drawn by several processes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from excise.app.bench.runs import resume, start
from excise.app.models.pipelines import Weights
from excise.bench.results import BASELINE
from excise.bench.run import Run, Unit
from excise.errors import ExciseError


class Drawing:
    """Runs Canvas runs: the device, the number of processes, and the time limit."""

    def __init__(self, device: str, jobs: int, minutes: float) -> None:
        self.device, self.jobs, self.seconds = device, jobs, 60 * minutes

    def __call__(self, run: Run) -> None:
        """Finish the run. Ctrl-C and the time limit keep the pictures so far."""
        until = time.monotonic() + self.seconds

        def drawn(pictures: float) -> None:
            done = len(run.units("done"))
            print(f"\r{run.folder.name}: {done} of {len(run.all_units)} done ", end="", flush=True)
            if time.monotonic() > until:
                raise _TimeIsUpError

        with suppress(_TimeIsUpError):
            resume(run, drawn, self.device, workers=self.jobs)
        print()


class _TimeIsUpError(Exception):
    pass


def begun(
    folder: Path,
    size: str,
    rows: Sequence[str],
    concepts: Sequence[str],
    settings: Any,
    dtype: str = "auto",
    suite: str = "canvas",
) -> Run:
    """Return the run in the folder if it contains these rows, or start a new one, in this precision.

    Raises:
        ExciseError: The run in the folder has other rows.
    """
    if not (folder / "run.json").exists():
        return start(folder, suite, size, rows, concepts, settings, weights=Weights(dtype))
    run = Run(folder)
    if not set(rows) <= set(run.plan["methods"]):
        raise ExciseError(f"{folder} was started with other methods or settings; choose another folder with --work")
    return run


def complete(run: Run, rows: Iterable[str]) -> list[str]:
    """Return the rows that are complete, if the unerased model's is complete too."""
    done = set(run.units("done"))
    whole = {row for row in run.plan["methods"] if {Unit(row, concept) for concept in run.plan["concepts"]} <= done}
    return [row for row in rows if {row, BASELINE} <= whole]


def comparable(run: Run, labels: Mapping[str, str]) -> dict[str, str]:
    """Return the complete rows of the methods after the unerased model's, or nothing if no method's is complete."""
    whole = complete(run, labels.values())
    rows = {name: row for name, row in labels.items() if row in whole}
    return {BASELINE: BASELINE, **rows} if rows else {}
