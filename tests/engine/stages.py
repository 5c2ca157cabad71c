"""Stages of small arrays for the engines' tests: each item writes one 4x4 array, or fails in a way of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from excise.errors import ExciseError
from excise.files import write_atomic


@dataclass(frozen=True)
class Arrays:
    """Item n is the array of n's random numbers. `fault` maps an item to what goes wrong in it."""

    folder: str
    raising: int = -1
    refusing: int = -1
    ending: int = -1
    killed_once: int = -1
    silent: int = -1
    meeting: int = -1
    meeting_ends: str = "raise"
    marking: bool = False
    together: int = 0
    sleeping: float = 0.0
    unopened: str = ""

    def path(self, item: int) -> Path:
        return Path(self.folder) / f"{item}.bin"

    def name(self, item: int) -> str:
        return f"item-{item}"

    def open(self) -> Callable[[int], None]:
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        with (Path(self.folder) / "opened").open("a") as log:
            log.write(f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
        if self.together:
            self._wait_for_drivers()
        if self.unopened == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.unopened:
            raise (ExciseError if self.unopened == "refused" else RuntimeError)("the model is not there")
        return self._make

    def _make(self, item: int) -> None:
        with (Path(self.folder) / "begun").open("a") as log:
            log.write(f"{item}\n")
        if item == self.raising:
            raise RuntimeError("CUDA error:\nout of memory")
        if item == self.refusing:
            raise ExciseError("the concept has too few pairs; give 10 or more")
        if item == self.ending:
            os._exit(7)
        if item == self.killed_once and not (mark := Path(self.folder) / "killed").exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if item == self.silent:
            return
        if item == self.meeting:
            self._meet(item)
        if self.marking:
            self._mark_interrupts()
        time.sleep(self.sleeping)
        write_atomic(self.path(item), np.random.default_rng(item).normal(size=(4, 4)).tobytes())

    def _meet(self, item: int) -> None:
        """Let another call write the item, and then fail."""
        write_atomic(self.path(item), np.random.default_rng(item).normal(size=(4, 4)).tobytes())
        if self.meeting_ends == "die":
            os._exit(7)
        raise (ExciseError if self.meeting_ends == "refuse" else RuntimeError)("the folder is not empty")

    def _wait_for_drivers(self) -> None:
        """Wait until so many drivers, with workers or without, have opened the stage."""
        log = Path(self.folder) / "drivers"
        with log.open("a") as file:
            file.write(f"{os.getpid() if multiprocessing.parent_process() is None else os.getppid()}\n")
        deadline = time.monotonic() + 60
        while len(set(log.read_text().split())) < self.together:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _mark_interrupts(self) -> None:
        """Write down every Ctrl-C from now on, and end a second after the first, as a training with a checkpoint."""
        came = []

        def mark(number: int, frame: object) -> None:
            with (Path(self.folder) / "interrupted").open("a") as log:
                log.write(f"{os.getpid()}\n")
            came.append(time.monotonic())

        signal.signal(signal.SIGINT, mark)
        deadline = time.monotonic() + 60
        while time.monotonic() < (came[0] + 1 if came else deadline):
            time.sleep(0.02)
        raise KeyboardInterrupt

    def interrupted(self) -> list[str]:
        """Return the process of every Ctrl-C that an item got."""
        log = Path(self.folder) / "interrupted"
        return log.read_text().split() if log.exists() else []

    def begun(self) -> list[int]:
        """Return the items that workers began, in order."""
        log = Path(self.folder) / "begun"
        return list(map(int, log.read_text().split())) if log.exists() else []

    def opened(self) -> list[list[str]]:
        """Return process id, threads and GPUs of every worker that opened the stage."""
        log = Path(self.folder) / "opened"
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    def contents(self, n: int) -> dict[int, bytes]:
        """Return the files of the first n items that exist."""
        return {item: self.path(item).read_bytes() for item in range(n) if self.path(item).exists()}


def expected(n: int, without: tuple[int, ...] = ()) -> dict[int, bytes]:
    """Return what the first n items contain."""
    return {i: np.random.default_rng(i).normal(size=(4, 4)).tobytes() for i in range(n) if i not in without}
