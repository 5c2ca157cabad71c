"""Run: the resumable results of a suite, in a plain folder without a database.

    run.json                       the plan: suite, size, concepts, methods with their configurations
    todo/ doing/ done/ failed/     one file per unit of work, `method=concept`; a worker claims one by renaming it
    tries/                         one file per failed try at a unit, with the error
    .clock                         touched to read the time of the disk's clock
    records/                       one JSONL file per attempt at a unit, one line per picture
    pictures/method=concept/       the pictures, PNG
    erasers/method=concept/        the fitted erasers
    fits/                          what fitting them cost
    searched/                      prompts found by attacks: by concept, and by unit for white-box attacks

A line is written after its picture, so killing a worker loses at most the pictures it was generating. Any number of
workers, on any machines that share the folder, may work on one run: renaming a file is atomic on local and network file
systems (not on object stores), so only one of them gets it. A worker that died leaves its claim behind. The claim goes
back to `todo` at once if its process has visibly ended, else when nothing has touched it for `STALE` seconds. If the
worker was only asleep, both write, each to its own records file, and the first line counts.

A failed unit goes back to `todo` for another worker; after `TRIES` tries it is set aside in `failed`.
"""

from __future__ import annotations

import glob
import json
import os
import secrets
import time
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from excise.bench import liveness
from excise.bench.suite import check_plan
from excise.errors import ExciseError, shown
from excise.files import is_leftover, parse_json, read_file, read_json, write_atomic

SCHEMA = "excise.run/1"
STALE = 120.0
"""Seconds without a sign of life after which a claim is taken back. A worker gives one every few seconds."""
TRIES = 3
"""Number of tries at a unit, by any workers, before it is set aside."""
Record = dict[str, Any]
_OUTSIDE = ("prompts", "clip", "q16", "style_classifier", "object_classifier")
"""Settings of a suite that name files or models. Canvas's `prompts` is a number."""
_NAMED, _WRITTEN = ":+/", "+&!"
_ON_DISK, _AS_NAMED = str.maketrans(_NAMED, _WRITTEN), str.maketrans(_WRITTEN, _NAMED)


@dataclass(frozen=True, order=True)
class Unit:
    """Unit of work that a worker claims: one method's pictures of one concept."""

    method: str
    concept: str

    @property
    def file(self) -> str:
        """Name on disk, without colons and slashes."""
        return f"{self.method.translate(_ON_DISK)}={self.concept}"

    @classmethod
    def of(cls, file: str) -> Unit:
        method, _, concept = file.rpartition("=")
        return cls(method.translate(_AS_NAMED), concept)


def checked_name(name: str) -> str:
    """Return a unit's or concept's name. Raises ExciseError if it would lead out of the run's folder."""
    if name.startswith(".") or any(sign in name for sign in ("/", "\\", "\0")):
        raise ExciseError(f"{name!r} cannot name a file of a run; the run is damaged or not to be trusted")
    return name


class Run:
    """Opened run.

    Raises ExciseError if the folder is not a run, its plan cannot be read, or one of both leads out of the folder.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        try:
            self.plan: dict[str, Any] = read_json(self.folder / "run.json")
        except OSError as error:
            why = error.strerror
            raise ExciseError(f"{folder} is not a run ({why}); start one with `excise bench run`") from error
        except ValueError as error:
            raise ExciseError(f"{self.folder / 'run.json'} is damaged ({error}); start another run") from error
        if (schema := self.plan.get("schema") if isinstance(self.plan, dict) else None) != SCHEMA:
            raise ExciseError(f"{folder} has the format {shown(schema)}, not {SCHEMA!r}; start another run")
        check_plan(self.plan, self.folder / "run.json")
        for concept in self.plan.get("concepts", ()):
            checked_name(concept)
        with os.scandir(self.folder) as entries:
            if links := sorted(entry.name for entry in entries if entry.is_symlink()):
                raise ExciseError(f"{self.folder / links[0]} is a link; a run may hold none, as it would write there")

    @property
    def named(self) -> dict[str, str]:
        """Return what the plan names outside the run: its model, SAE, and the suite's files and models."""
        suite = self.plan.get("settings", {})
        named = {key: self.plan.get(key) for key in ("model", "sae")} | {key: suite.get(key) for key in _OUTSIDE}
        return {key: value for key, value in named.items() if isinstance(value, str)}

    @classmethod
    def create(cls, folder: Path | str, plan: Mapping[str, Any], units: Sequence[Unit]) -> Run:
        """Create a run, or open the one in the folder if its plan is the same.

        Raises ExciseError if the folder holds another run, or other files.
        """
        folder = Path(folder)
        full = json.loads(json.dumps({"schema": SCHEMA, **plan}))
        if (folder / "run.json").exists():
            run = cls(folder)
            if run.plan != full:
                odd = sorted(k for k in {*run.plan, *full} if run.plan.get(k) != full.get(k))
                raise ExciseError(f"{folder} holds another run ({', '.join(odd)} differ); choose another folder")
            return run
        if folder.exists() and any(p.name != "todo" and not is_leftover(p.name) for p in folder.iterdir()):
            raise ExciseError(f"{folder} holds other files; choose an empty or new folder")
        for unit in units:
            write_atomic(folder / "todo" / unit.file, "")
        # The plan is written last: once it exists, so do all units.
        write_atomic(folder / "run.json", json.dumps(full, indent=1, sort_keys=True) + "\n")
        return cls(folder)

    def units(self, state: str) -> list[Unit]:
        """Return the units that are "todo", "doing", "done" or "failed"."""
        return sorted({Unit.of(name.partition("@")[0]) for name in self._names(state)})

    def claim(self, tried: Collection[Unit] = ()) -> Claim | None:
        """Claim a unit for this worker, never one that it `tried`. Returns None if no free unit is left.

        Units with the fewest failures come first, then methods in the plan's order, so that a run that is cut short has
        finished the first methods on all concepts.
        """
        self._take_back()
        places = {method: place for place, method in enumerate(self.plan.get("methods", ()))}
        failures = Counter(name.partition("@")[0] for name in self._names("tries"))
        order = {
            name: (failures[name], places.get(Unit.of(name).method, len(places)))
            for name in self._names("todo")
            if Unit.of(name) not in tried
        }
        for name in sorted(order, key=lambda name: order[name]):
            mine = self.folder / "doing" / f"{name}@{liveness.name()}"
            mine.parent.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                os.utime(self.folder / "todo" / name)  # touch it before it becomes a claim, so that it is never stale
                (self.folder / "todo" / name).rename(mine)
                return Claim(self, Unit.of(name), mine)
        return None

    def records(self, unit: Unit | None = None) -> list[Record]:
        """Return one record per picture from all attempts at a unit, or at all units. Torn last lines are left out."""
        found: dict[tuple[str, str], Record] = {}
        for path in sorted((self.folder / "records").glob(f"{unit.file if unit else '*'}@*.jsonl")):
            for record in _lines(path):
                found.setdefault((record["method"], record["case"]), record)
        return list(found.values())

    def signs(self) -> dict[str, float]:
        """Return the time of each claim's last sign of life, by name."""
        found = {}
        for name in self._names("doing"):
            with suppress(FileNotFoundError):
                found[name] = (self.folder / "doing" / name).stat().st_mtime
        return found

    def errors(self) -> dict[Unit, list[str]]:
        """Return the errors of each unit that is not done, one line per try."""
        open_units = {*self.units("todo"), *self.units("doing"), *self.units("failed")}
        found: dict[Unit, list[str]] = {}
        for name in self._names("tries"):
            if (unit := Unit.of(name.partition("@")[0])) in open_units:
                with suppress(OSError, ValueError, KeyError, TypeError):
                    found.setdefault(unit, []).append(str(read_json(self.folder / "tries" / name)["error"]))
        return found

    def retry(self) -> list[Unit]:
        """Reset all tries and put back the units that were set aside. Returns those units."""
        for name in self._names("tries"):
            (self.folder / "tries" / name).unlink(missing_ok=True)
        units = self.units("failed")
        for unit in units:
            with suppress(FileNotFoundError):
                (self.folder / "failed" / unit.file).rename(self.folder / "todo" / unit.file)
        return units

    def put_back(self, claimed: Path, unit: str, error: Mapping[str, str] | None = None, name: str = "died") -> None:
        """Move a claim back to `todo`. With an error, record a try; after `TRIES` of them, move the claim to `failed`.

        `name` distinguishes this claim's tries: a dead worker counts once, however many others find it.
        """
        if error is not None:
            write_atomic(self.folder / "tries" / f"{claimed.name}.{name}.json", json.dumps(error, indent=1) + "\n")
        tries = sum(name.partition("@")[0] == unit for name in self._names("tries"))
        target = self.folder / ("failed" if tries >= TRIES else "todo") / unit
        target.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # taken back meanwhile: the other worker handles it
            claimed.rename(target)

    def _names(self, state: str) -> list[str]:
        folder = self.folder / state
        return sorted(name for name in os.listdir(folder) if not is_leftover(name)) if folder.exists() else []

    def _take_back(self) -> None:
        """Put back the claims of dead workers. If one died before its first picture, the unit may be the cause."""
        if not (signs := self.signs()):
            return
        now = self._now()
        for name, sign in signs.items():
            unit, _, worker = name.partition("@")
            if not liveness.is_dead(worker) and now - sign <= STALE:
                continue
            path, got_on = self.folder / "doing" / name, any((self.folder / "records").glob(f"{glob.escape(name)}.*"))
            if path.exists():  # no other worker took it back
                self.put_back(
                    path, unit, None if got_on else {"error": f"its worker ended without an error ({worker})"}
                )

    def _now(self) -> float:
        """Return the time of the clock that stamps signs of life: on a network disk, the server's."""
        clock = self.folder / ".clock"
        try:
            clock.touch()
            return clock.stat().st_mtime
        except OSError:
            return time.time()


class Claim:
    """Unit claimed by this worker. Its records go to their own file, line by line."""

    def __init__(self, run: Run, unit: Unit, path: Path) -> None:
        self.run, self.unit, self._path = run, unit, path
        self._log: IO[str] | None = None

    def alive(self) -> None:
        """Give a sign of life to the other workers."""
        with suppress(FileNotFoundError):
            os.utime(self._path)

    def write(self, records: Sequence[Record]) -> None:
        """Append records and flush them to disk. Raises ExciseError if the disk refuses."""
        try:
            if self._log is None:
                folder = self.run.folder / "records"
                folder.mkdir(exist_ok=True)
                self._log = (folder / f"{self._path.name}.{time.time_ns():x}{secrets.token_hex(2)}.jsonl").open("x")
            self._log.writelines(json.dumps(record, sort_keys=True) + "\n" for record in records)
            self._log.flush()
            os.fsync(self._log.fileno())
        except OSError as error:
            raise ExciseError(f"cannot write records: {error.strerror}; free some space and resume") from error
        self.alive()

    def finish(self) -> None:
        """Mark the unit as done."""
        self.close()
        target = self.run.folder / "done" / self.unit.file
        target.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # taken back meanwhile: the other worker handles it
            self._path.rename(target)

    def release(self) -> None:
        """Return the unit to `todo` for the next worker."""
        self.close()
        self.run.put_back(self._path, self.unit.file)

    def fail(self, error: BaseException) -> None:
        """Record the error, and return the unit for another worker, or set it aside after `TRIES` tries."""
        self.close()
        line = " ".join(f"{type(error).__name__}: {error}".split())
        entry = {"error": line, "traceback": "".join(traceback.format_exception(error))}
        self.run.put_back(self._path, self.unit.file, entry, secrets.token_hex(4))

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


def _lines(path: Path) -> Iterator[Record]:
    try:
        lines = read_file(path, 2**30).splitlines()
    except OSError as error:
        raise ExciseError(f"cannot read {path}: {error.strerror or error}; start another run") from error
    for line in lines:
        with suppress(ValueError):  # only the last line can be torn: its worker was killed while writing it
            record = parse_json(line)
            if not (isinstance(record, dict) and {str} == {type(record.get(k)) for k in ("method", "case")}):
                raise ExciseError(f"{path} holds a record without a method or a case; start another run")
            yield record
