"""Runs of a suite for scripts that compare methods: begun or opened, and drawn by several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

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
        spawned = multiprocessing.get_context("spawn")
        workers = [spawned.Process(target=_draw, args=(run.folder, self.device, self.jobs)) for _ in range(self.jobs)]
        for worker in workers:
            worker.start()
        try:
            while any(worker.is_alive() for worker in workers) and time.monotonic() < until:
                time.sleep(2)
                done, left = (len(run.units(state)) for state in ("done", "todo"))
                print(
                    f"\r{run.folder.name}: {done} of {len(_units(run))} done, {left} not started ", end="", flush=True
                )
        finally:
            _stop(workers, 20)
            print()


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


def _stop(workers: Sequence[Any], patience: float) -> None:
    """End the workers. Each gets `patience` seconds to finish its step."""
    for worker in workers:
        if worker.is_alive():
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGINT)
    for worker in workers:
        if worker.pid is not None:
            worker.join(patience)
            worker.kill()


def _draw(folder: Path, device: str, jobs: int) -> None:
    """Work on the run in this process, with its share of the cores."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    parent = os.getppid()

    def drawn(pictures: float) -> None:
        if os.getppid() != parent:  # the parent was killed and cannot stop this process
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        resume(Run(folder), drawn, device)


def _units(run: Run) -> list[Unit]:
    return [Unit(row, concept) for row in run.plan["methods"] for concept in run.plan["concepts"]]
