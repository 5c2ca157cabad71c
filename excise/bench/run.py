"""Run: the resumable results of a suite, in a plain folder without a database, on a disk or in an object store.

    run.json                       the plan: suite, size, concepts, methods with their configurations
    fits/method=concept.json       what fitting cost, or why the method refuses the concept
    erasers/method=concept/        the fitted erasers
    searched/                      prompts found by attacks: by concept, and by unit for white-box attacks
    blocks/method=concept/N.zip    records and pictures of one block of cases
    checked/method=concept.json    which pictures taken over from the unerased model were generated again as a check
    failures/                      what failed and was set aside, with the error
    pictures/method=concept/       pictures taken out of blocks, for other programs

Every file is an item of an engine (`excise.engine`), and is done if and only if it exists. So a killed worker loses at
most the blocks in progress, and any number of workers may work on one run.

Runs of earlier versions (`excise.run/1`) have one JSONL file per attempt at a unit in `records/`, loose pictures, and a
file per unit in `done/`. They are read. They are not continued.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excise.bench.items import blocks
from excise.bench.suite import check_plan
from excise.errors import ExciseError, shown
from excise.files import is_leftover, parse_json, read_file, read_json, write_atomic, write_once
from excise.remote import Remote

BASELINE = "none"
"""Method that stands for the unerased model."""
SCHEMA, OLD = "excise.run/2", "excise.run/1"
Record = dict[str, Any]
_OUTSIDE = ("prompts", "clip", "q16", "style_classifier", "object_classifier")
"""Settings of a suite that name files or models. Canvas's `prompts` is a number."""
_NAMED, _WRITTEN = ":+/", "+&!"
_ON_DISK, _AS_NAMED = str.maketrans(_NAMED, _WRITTEN), str.maketrans(_WRITTEN, _NAMED)


@dataclass(frozen=True, order=True)
class Unit:
    """One method's pictures of one concept."""

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
    """Opened run. Of one in an object store, `folder` is the copy on this machine.

    Raises ExciseError if the folder is not a run, its plan cannot be read, or one of both leads out of the folder, and
    if an object store fails.
    """

    def __init__(self, folder: Path | str, remote: Remote | None = None) -> None:
        self.remote = remote or Remote.at(folder)
        self.folder = Path(folder) if self.remote is None else self.remote.copy
        if self.remote is not None and self.remote.fetch(self.folder / "run.json"):
            self.remote.pull()
        try:
            self.plan: dict[str, Any] = read_json(self.folder / "run.json")
        except OSError as error:
            why = error.strerror
            raise ExciseError(f"{self.where()} is not a run ({why}); start one with `excise bench run`") from error
        except ValueError as error:
            raise ExciseError(f"{self.where('run.json')} is damaged ({error}); start another run") from error
        if (schema := self.plan.get("schema") if isinstance(self.plan, dict) else None) not in (SCHEMA, OLD):
            raise ExciseError(f"{self.where()} has the format {shown(schema)}, not {SCHEMA!r}; start another run")
        check_plan(self.plan, self.folder / "run.json")
        for concept in self.plan.get("concepts", ()):
            checked_name(concept)
        with os.scandir(self.folder) as entries:
            if links := sorted(entry.name for entry in entries if entry.is_symlink()):
                raise ExciseError(f"{self.folder / links[0]} is a link; a run may hold none, as it would write there")

    def where(self, name: str = "") -> str:
        """Return what a user calls the run, or one of its files: a path, or a URL in an object store."""
        return str(self.folder / name) if self.remote is None else self.remote.where(name)

    def write(self, path: Path, data: bytes | str, *, once: bool = False) -> None:
        """Write a file of the run atomically; with `once`, unless it exists. Raises ExciseError if it cannot."""
        if self.remote is None:
            (write_once if once else write_atomic)(path, data)
        else:
            (self.remote.write_once if once else self.remote.write)(path, data)

    def remove(self, path: Path) -> None:
        """Remove a file of the run, if it exists."""
        if self.remote is None:
            path.unlink(missing_ok=True)
        else:
            self.remote.remove(path)

    @property
    def named(self) -> dict[str, str]:
        """Return what the plan names outside the run: its model, SAE, and the suite's files and models."""
        suite = self.plan.get("settings", {})
        named = {key: self.plan.get(key) for key in ("model", "sae")} | {key: suite.get(key) for key in _OUTSIDE}
        return {key: value for key, value in named.items() if isinstance(value, str)}

    @property
    def old(self) -> bool:
        """Whether an earlier version began the run."""
        return bool(self.plan["schema"] == OLD)

    @classmethod
    def create(cls, folder: Path | str, plan: Mapping[str, Any]) -> Run:
        """Create a run, or open the one in the folder if its plan is the same.

        Raises ExciseError if the folder holds another run, or other files.
        """
        remote = Remote.at(folder)
        folder = Path(folder) if remote is None else remote.copy
        plan_file = folder / "run.json"
        full = json.loads(json.dumps({"schema": SCHEMA, **plan}))
        if plan_file.exists() if remote is None else remote.fetch(plan_file):
            run = cls(folder, remote)
            if "safety_checker" not in run.plan:  # begun before runs were generated without the safety checker
                full.pop("safety_checker", None)
            odd = sorted(k for k in {*run.plan, *full} - {"schema"} if run.plan.get(k) != full.get(k))
            if odd:
                raise ExciseError(f"{run.where()} holds another run ({', '.join(odd)} differ); choose another folder")
            return run
        others = remote.names() if remote is not None else os.listdir(folder) if folder.exists() else []
        if any(not is_leftover(name) for name in others):
            where = folder if remote is None else remote.where()
            raise ExciseError(f"{where} holds other files; choose an empty or new folder")
        content = json.dumps(full, indent=1, sort_keys=True) + "\n"
        write_atomic(plan_file, content) if remote is None else remote.write(plan_file, content)
        return cls(folder, remote)

    @property
    def all_units(self) -> list[Unit]:
        """Every unit, in the plan's order: a run that is cut short has finished the first methods on all concepts."""
        return [Unit(label, name) for label in self.plan.get("methods", ()) for name in self.plan.get("concepts", ())]

    @property
    def is_finished(self) -> bool:
        """Whether every unit is done."""
        return set(self.all_units) <= set(self.units("done"))

    def units(self, state: str) -> list[Unit]:
        """Return the units that are "todo", "done" or "failed", in order of their names.

        A unit is done if its last block is, or if its method refuses it; `excise.bench.items.work` notes it in `done`.
        """
        done = set(self._noted("done"))
        failed = {*self.errors(), *(self._noted("failed") if self.old else ())} - done
        by_state = {"done": done, "failed": failed, "todo": {*self.all_units} - done - failed}
        return sorted(by_state[state])

    def records(self, unit: Unit | None = None) -> list[Record]:
        """Return one record per picture of a unit, or of all units. Torn last lines of earlier versions are left out.

        Raises ExciseError for a file that cannot be read.
        """
        found: dict[tuple[str, str], Record] = {}
        for path in sorted((self.folder / "records").glob(f"{unit.file if unit else '*'}@*.jsonl")):
            for record in _lines(path):
                found.setdefault((record["method"], record["case"]), record)
        for one in [unit] if unit else self.all_units:
            for path in blocks.files(self.folder, one.file):
                for record in blocks.read_records(path):
                    found.setdefault((record["method"], record["case"]), record)
        return list(found.values())

    def errors(self) -> dict[Unit, list[str]]:
        """Return the errors of each unit that is not done, one line per failed item."""
        done, found = set(self._noted("done")), dict[Unit, list[str]]()
        folder, field = ("tries", "error") if self.old else ("failures", "why")
        for name in self._names(folder):
            with suppress(OSError, ValueError, KeyError, TypeError):
                line = str(read_json(self.folder / folder / name)[field])
                for unit in [Unit.of(name.partition("@")[0])] if self.old else self._failed(name):
                    if unit not in done:
                        found.setdefault(unit, []).append(line)
        return found

    def retry(self) -> list[Unit]:
        """Forget all failures. Returns the units that had any."""
        units = self.units("failed")
        for name in self._names("failures"):
            self.remove(self.folder / "failures" / name)
        return units

    def _failed(self, name: str) -> list[Unit]:
        """Return the units that an item's failure stops: its own, or all of a concept whose search failed."""
        kind, _, rest = name.removesuffix(".json").partition("-")
        if kind == "search":
            return [unit for unit in self.all_units if unit.concept == rest]
        file = rest.rpartition("-")[0] if kind == "draw" else rest
        return [unit for unit in self.all_units if unit.file == file]

    def _noted(self, state: str) -> list[Unit]:
        return [Unit.of(name.partition("@")[0]) for name in self._names(state)]

    def _names(self, state: str) -> list[str]:
        folder = self.folder / state
        return sorted(name for name in os.listdir(folder) if not is_leftover(name)) if folder.exists() else []


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
