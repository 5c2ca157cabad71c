"""Stage of a run: fits erasers, searches for prompts, and generates, judges and records blocks of pictures."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from excise.bench.items import blocks
from excise.bench.items.cases import all_cases, block_file, checked_file, cut, save_searched, searched
from excise.bench.items.drawn_with import drawn_with, forget_peak, peak_memory
from excise.bench.items.entry import Entry
from excise.bench.items.given import acts_on_text_alone, is_given_at_once, is_untouched
from excise.bench.items.recording import records_of
from excise.bench.items.reusing import Reusing, Taken, check_alike, chosen_to_check
from excise.bench.pictures import png
from excise.bench.run import Record, Run, Unit
from excise.bench.suite import Case, Suite
from excise.drawn import Drawn
from excise.engine.working import is_of_the_disk
from excise.erasers import Eraser
from excise.erasers.artefact.verdict import WeakEraser
from excise.errors import ExciseError
from excise.methods.lookup import method
from excise.pipeline import Pipeline
from excise.remote import Remote
from excise.sae import TopKSAE
from excise.sae import load as load_sae
from excise.sites.truncation import cuts, suppress_cut_warnings
from excise.step_progress import by_steps

MANIFEST = "manifest.json"
"""File of an eraser that is written last."""
Kind = Literal["fit", "search", "attack", "draw", "check"]


@dataclass(frozen=True)
class Item:
    """One file of a run: what a unit's fit cost, a concept's or a unit's search, a unit's block, or its check."""

    kind: Kind
    of: str
    """A concept for "search", else a unit's name on disk."""
    number: int = 0
    """Number of the block."""

    @property
    def unit(self) -> Unit:
        return Unit.of(self.of)


@dataclass(frozen=True)
class Opened:
    """What a worker works with."""

    suite: Suite
    pipe: Pipeline
    defaults: Mapping[str, Mapping[str, Any]]
    """By the run's row, settings on this machine that its label does not give, such as the path of an SAE."""
    progress: Callable[[float], Any] | None = None


@dataclass(frozen=True, eq=False)
class Making:
    """Stage of a run's items."""

    folder: Path
    opening: Callable[[], Opened]
    """Loads what a worker works with; for other processes it is pickled."""
    remote: Remote | None = None
    """The run's folder in an object store, if it is in one."""

    def open(self) -> Maker:
        return Maker(Run(self.folder, self.remote), self.opening())

    def path(self, item: Item) -> Path:
        if item.kind == "fit":
            return fit_file(self.folder, item.unit)
        if item.kind == "draw":
            return block_file(self.folder, item.unit, item.number)
        if item.kind == "check":
            return checked_file(self.folder, item.unit)
        return searched(self.folder, item.of)

    def name(self, item: Item) -> str:
        return f"{item.kind}-{item.of}" + (f"-{item.number:05d}" if item.kind == "draw" else "")


def fit_file(folder: Path, unit: Unit) -> Path:
    """Return the file that says what a unit's fit cost, or why the method refuses the concept, in a run's folder."""
    return folder / "fits" / f"{unit.file}.json"


class Maker:
    """Makes items with one pipeline. The eraser of the last unit stays attached for the unit's next block."""

    def __init__(self, run: Run, opened: Opened) -> None:
        self._run, self._suite, self._pipe = run, opened.suite, opened.pipe
        self._defaults, self._progress = opened.defaults, opened.progress
        self._attached: Unit | None = None
        self._stack = ExitStack()
        self._eraser: Eraser
        self._reusing = Reusing(run, self._suite)
        self._cut: tuple[Unit, list[list[list[Case]]]] | None = None
        """Blocks of the unit that was drawn last; its searches are done, so they stay the same."""
        suppress_cut_warnings(self._pipe)  # each record states what part of its prompt is truncated

    def __call__(self, item: Item) -> None:
        if self._run.remote is not None:
            self._run.remote.pull()  # what other machines have made since
        work = {
            "fit": self._fit, "search": self._search, "attack": self._attack, "draw": self._draw, "check": self._check,
        }  # fmt: skip
        work[item.kind](item)

    def close(self) -> None:
        """Detach what is attached."""
        self._attached = None
        self._stack.close()

    def _fit(self, item: Item) -> None:
        self.close()
        unit = item.unit
        try:
            cost = self._fitted(unit)
            if self._run.remote is not None and (folder := self._saved(unit)).exists():
                self._run.remote.push(folder, MANIFEST)
        except ExciseError as error:
            if is_of_the_disk(error):
                raise
            # That a method cannot erase this concept is a result too, and listed in the report.
            cost = {"refused": str(error)}
        self._run.write(fit_file(self._run.folder, unit), json.dumps(cost, indent=1, sort_keys=True) + "\n")

    def _fitted(self, unit: Unit) -> dict[str, Any]:
        """Fit and save the eraser, and return the cost; nothing for an eraser that was put there."""
        folder, entry = self._saved(unit), Entry.parse(unit.method)
        if (folder / MANIFEST).exists():
            return {}
        forget_peak()
        began = time.perf_counter()
        eraser = self._made(unit, entry)
        cost: dict[str, Any] = {"seconds": time.perf_counter() - began, "bytes": 0}
        if eraser.edits:
            eraser.save(folder)
            cost["bytes"] = sum(file.stat().st_size for file in folder.iterdir())
        cost["peak_memory"] = peak_memory()
        cost["drawn_with"] = self._drawn_with()
        cost["weak"] = list(eraser.weak)
        return cost

    def _made(self, unit: Unit, entry: Entry) -> Eraser:
        chosen, settings = method(entry.method), self._settings(entry)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WeakEraser)  # recorded in the cost
            config = chosen.Config(**settings)
            return chosen.fit(self._pipe, self._suite.concept(unit.concept), config)

    def _settings(self, entry: Entry) -> dict[str, Any]:
        return {**self._defaults.get(entry.label, {}), **entry.settings}

    def _search(self, item: Item) -> None:
        self.close()
        save_searched(self._run, item.of, self._suite.search(self._pipe, item.of, self._size))

    def _attack(self, item: Item) -> None:
        unit = item.unit
        eraser = self._attach(unit)
        known = partial(self._suite.attack, self._pipe) if eraser.edits else self._suite.baseline
        save_searched(self._run, unit.file, known(unit.concept, self._size))

    def _attach(self, unit: Unit) -> Eraser:
        """Attach a unit's eraser, and detach the last one. An eraser without edits is made again: it is empty."""
        if self._attached != unit:
            self.close()
            folder, entry = self._saved(unit), Entry.parse(unit.method)
            saved = (folder / MANIFEST).exists()
            self._eraser = Eraser.load(folder) if saved else self._made(unit, entry)
            sae = _sae(self._eraser, self._settings(entry))
            self._stack.enter_context(self._eraser.attach(self._pipe, sae=sae))
            self._attached = unit
        return self._eraser

    def _saved(self, unit: Unit) -> Path:
        """Return the folder of a unit's eraser."""
        return self._run.folder / "erasers" / unit.file

    @property
    def _size(self) -> str:
        return str(self._run.plan["size"])

    def _draw(self, item: Item) -> None:
        unit = item.unit
        eraser = self._attach(unit)
        records: list[Record] = []
        pictures: dict[str, bytes] = {}
        made_with = self._drawn_with()
        for batch in self._blocks(unit)[item.number]:
            taken = self._taken(unit, eraser, batch, made_with)
            drawn, seconds = self._drawn(batch, self._progress) if taken is None else (taken.drawn, taken.seconds)
            pictures |= {case.id: png(picture) for case, picture in zip(batch, drawn.pixels, strict=True)}
            lost = {cut.prompt: cut.lost for cut in cuts(self._pipe, [case.prompt for case in batch])}
            rows = records_of(unit, self._suite, batch, drawn, seconds, lost)
            origin = [{}] * len(batch) if taken is None else [{"reused": record["case"]} for record in taken.records]
            records += [{"drawn_with": made_with} | row | own for row, own in zip(rows, origin, strict=True)]
        self._run.remove(checked_file(self._run.folder, unit))  # it was of other pictures
        self._run.write(block_file(self._run.folder, unit, item.number), blocks.packed(records, pictures))

    def _check(self, item: Item) -> None:
        """Generate some of the unit's pictures that were taken over, and compare them.

        Pictures of other hardware cannot be: their bits may differ without a fault. They are counted as `elsewhere`.
        """
        unit = item.unit
        self._attach(unit)
        records = {record["case"]: record for record in self._run.records(unit)}
        reused = [case for case, record in records.items() if "reused" in record]
        here = self._drawn_with()
        alike = [case for case in reused if records[case].get("drawn_with") == here]
        chosen = chosen_to_check(unit, alike)
        for batch in (batch for block in self._blocks(unit) for batch in block):
            if chosen & {case.id for case in batch}:
                check_alike(self._run.folder, unit, batch, self._drawn(batch, None)[0], records)
        content = {"reused": len(reused), "redrawn": sorted(chosen), "elsewhere": len(reused) - len(alike)}
        self._run.write(checked_file(self._run.folder, unit), json.dumps(content, indent=1) + "\n")

    def _drawn_with(self) -> str:
        return drawn_with(self._pipe, getattr(self._suite, "sampler", None))

    def _blocks(self, unit: Unit) -> list[list[list[Case]]]:
        if self._cut is None or self._cut[0] != unit:
            self._cut = unit, cut(self._suite, all_cases(self._run, self._suite, unit))
        return self._cut[1]

    def _drawn(self, batch: list[Case], progress: Callable[[float], Any] | None) -> tuple[Drawn, float]:
        """Generate a batch. Return it with the seconds per picture."""
        began = time.perf_counter()
        with by_steps(self._pipe, progress, len(batch)):
            made = self._suite.draw(self._pipe, batch)
        seconds = (time.perf_counter() - began) / len(batch)
        return (made if isinstance(made, Drawn) else Drawn.of(made)), seconds

    def _taken(self, unit: Unit, eraser: Eraser, batch: list[Case], made_with: str) -> Taken | None:
        """Return the unerased model's batch, if it exists and the eraser changes nothing that the denoiser is given."""
        calls: Callable[[list[Case]], list[list[Case]]] | None = getattr(self._suite, "calls", None)
        if eraser.edits and (calls is None or not acts_on_text_alone(eraser) or not is_given_at_once(self._pipe)):
            return None
        taken = self._reusing.find(unit, batch, made_with)
        if taken is None:
            return None
        if calls is not None and eraser.edits:
            draws = [partial(self._suite.draw, self._pipe, group) for group in calls(batch)]
            if not is_untouched(self._pipe, draws):
                return None
        if self._progress is not None:
            self._progress(len(batch))
        return taken


def _sae(eraser: Eraser, settings: Mapping[str, Any]) -> TopKSAE | None:
    """Return the SAE that the eraser needs when it is attached, from its method's settings, or None."""
    if not any(edit.needs_sae for edit in eraser.edits):
        return None
    folder = next((value for name, value in settings.items() if name.rpartition(".")[2] == "sae" and value), None)
    return None if folder is None else load_sae(Path(folder))
