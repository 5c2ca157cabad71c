"""Run: a suite's resumable results, a plain folder without a database.

    run.json                       what is run: suite, size, concepts, methods with their configurations
    todo/ doing/ done/             one file a unit of work, `method=concept`; a worker claims one by renaming it
    records/                       one JSONL file an attempt at a unit, one line a picture
    pictures/method=concept/       the pictures, PNG
    erasers/method=concept/        the erasers that were fitted
    fits/                          what fitting them cost
    searched/                      the prompts that attacks found: by concept, and by unit those that knew the eraser

A line is written after its picture, so killing a worker at any moment loses at most the pictures it was drawing. Any
number of workers, on any machines that share the folder, may work on one run: renaming a file is atomic, only one of
them gets it. A worker that died leaves its claim behind; when nothing has touched that for `STALE` seconds it goes back
to `todo`. Should it have been asleep and not dead, both write, each to its own records file, and the first line counts.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from excise.errors import ExciseError
from excise.files import write_atomic

SCHEMA = "excise.run/1"
STALE = 120.0
"""Seconds without a sign of life after which a claim is taken back; a worker gives one every few seconds."""
Record = dict[str, Any]
_NAMED, _WRITTEN = ":+/", "+&!"
_ON_DISK, _AS_NAMED = str.maketrans(_NAMED, _WRITTEN), str.maketrans(_WRITTEN, _NAMED)


@dataclass(frozen=True, order=True)
class Unit:
    """What a worker claims at a time: one method's pictures of one concept."""

    method: str
    concept: str

    @property
    def file(self) -> str:
        """Its name on disk, where colons and slashes are not welcome."""
        return f"{self.method.translate(_ON_DISK)}={self.concept}"

    @classmethod
    def of(cls, file: str) -> Unit:
        method, _, concept = file.rpartition("=")
        return cls(method.translate(_AS_NAMED), concept)


class Run:
    """An opened run. Raises ExciseError where the folder is none, or its plan cannot be read."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        try:
            self.plan: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        except OSError as error:
            raise ExciseError(f"{folder} is no run ({error.strerror}); start one with `excise bench run`") from error
        except ValueError as error:
            raise ExciseError(f"{self.folder / 'run.json'} is damaged ({error}); start another run") from error
        if self.plan.get("schema") != SCHEMA:
            raise ExciseError(f"{folder} has the format {self.plan.get('schema')!r}, this version reads {SCHEMA!r}")

    @classmethod
    def create(cls, folder: Path | str, plan: Mapping[str, Any], units: Sequence[Unit]) -> Run:
        """A new run with everything still to do; the one that is there already where its plan is the same.

        Raises ExciseError where another run, or anything else, is in the folder.
        """
        folder = Path(folder)
        full = json.loads(json.dumps({"schema": SCHEMA, **plan}))
        if (folder / "run.json").exists():
            run = cls(folder)
            if run.plan != full:
                odd = sorted(k for k in {*run.plan, *full} if run.plan.get(k) != full.get(k))
                raise ExciseError(f"{folder} holds another run ({', '.join(odd)} differ); choose another folder")
            return run
        if folder.exists() and any(p.name != "todo" for p in folder.iterdir()):
            raise ExciseError(f"{folder} holds other files; choose an empty or new folder")
        for unit in units:
            write_atomic(folder / "todo" / unit.file, "")
        # The plan comes last: with it the run exists, and all its units do.
        write_atomic(folder / "run.json", json.dumps(full, indent=1, sort_keys=True) + "\n")
        return cls(folder)

    def units(self, state: str) -> list[Unit]:
        """The units that are "todo", "doing" or "done"."""
        return sorted({Unit.of(name.partition("@")[0]) for name in self._names(state)})

    def claim(self) -> Claim | None:
        """One unit for this worker, or None where nothing is left that nobody else is at.

        Methods in the plan's order: a run that is cut short has drawn the first ones on all of its concepts.
        """
        self._take_back()
        places = {method: place for place, method in enumerate(self.plan.get("methods", ()))}
        for name in sorted(self._names("todo"), key=lambda name: places.get(Unit.of(name).method, len(places))):
            mine = self.folder / "doing" / f"{name}@{_worker()}"
            mine.parent.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                os.utime(self.folder / "todo" / name)  # before the claim exists, so that it is never stale
                (self.folder / "todo" / name).rename(mine)
                return Claim(self, Unit.of(name), mine)
        return None

    def records(self, unit: Unit | None = None) -> list[Record]:
        """The lines of every attempt at a unit, or at all of them, one a picture; a torn last line is left out."""
        found: dict[tuple[str, str], Record] = {}
        for path in sorted((self.folder / "records").glob(f"{unit.file if unit else '*'}@*.jsonl")):
            for record in _lines(path):
                found.setdefault((record["method"], record["case"]), record)
        return list(found.values())

    def _names(self, state: str) -> list[str]:
        folder = self.folder / state
        return sorted(os.listdir(folder)) if folder.exists() else []

    def _take_back(self) -> None:
        """Put claims of the dead back to `todo`."""
        for name in self._names("doing"):
            path = self.folder / "doing" / name
            unit, _, worker = name.partition("@")
            with suppress(FileNotFoundError):
                if _is_dead(worker) or time.time() - path.stat().st_mtime > STALE:
                    path.rename(self.folder / "todo" / unit)


class Claim:
    """A unit that is this worker's. Records go to a file of its own, line by line."""

    def __init__(self, run: Run, unit: Unit, path: Path) -> None:
        self.run, self.unit, self._path = run, unit, path
        self._log: IO[str] | None = None

    def alive(self) -> None:
        """Tell the others that somebody is at it."""
        with suppress(FileNotFoundError):
            os.utime(self._path)

    def write(self, records: Sequence[Record]) -> None:
        """Append lines and see them onto the disk. Raises ExciseError where that refuses."""
        try:
            if self._log is None:
                folder = self.run.folder / "records"
                folder.mkdir(exist_ok=True)
                self._log = (folder / f"{self._path.name}.{time.time_ns():x}.jsonl").open("x")
            self._log.writelines(json.dumps(record, sort_keys=True) + "\n" for record in records)
            self._log.flush()
            os.fsync(self._log.fileno())
        except OSError as error:
            raise ExciseError(f"cannot write records: {error.strerror}; free some space and resume") from error
        self.alive()

    def finish(self) -> None:
        """Everything of the unit is recorded."""
        self.close()
        self._move("done", self.unit.file)

    def release(self) -> None:
        """Leave the rest to whoever claims it next."""
        self.close()
        self._move("todo", self.unit.file)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _move(self, state: str, name: str) -> None:
        target = self.run.folder / state / name
        target.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # taken back meanwhile: the other worker will see to it
            self._path.rename(target)


def _lines(path: Path) -> Iterator[Record]:
    with path.open() as file:
        for line in file:
            # Only the last line can be torn, by a worker that was killed while writing it.
            with suppress(ValueError):
                yield json.loads(line)


def _worker() -> str:
    return f"{socket.gethostname()}.{os.getpid()}"


def _is_dead(worker: str) -> bool:
    """Whether the worker ran on this machine and does not any more; of others the clock alone can tell."""
    host, _, pid = worker.rpartition(".")
    if host != socket.gethostname() or not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
