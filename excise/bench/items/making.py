"""Stage of a run: fits erasers, searches for prompts, and generates, judges and records blocks of pictures."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from excise.bench.items import blocks
from excise.bench.items.cases import all_cases, block_file, cut, save_searched, searched
from excise.bench.items.drawn_with import drawn_with, forget_peak, peak_memory
from excise.bench.items.entry import Entry
from excise.bench.pictures import from_png, png
from excise.bench.results import BASELINE
from excise.bench.run import Record, Run, Unit
from excise.bench.suite import Case, Suite
from excise.drawn import Drawn
from excise.engine.working import is_of_the_disk
from excise.erasers import Eraser
from excise.erasers.artefact.verdict import WeakEraser
from excise.errors import ExciseError
from excise.files import sha256, write_atomic
from excise.methods.lookup import method, settings_of
from excise.pipeline import Pipeline
from excise.sae import TopKSAE
from excise.sae import load as load_sae
from excise.sites.truncation import cuts, suppress_cut_warnings
from excise.step_progress import by_steps

Kind = Literal["fit", "search", "attack", "draw"]


@dataclass(frozen=True)
class Item:
    """One file of a run: what a unit's fit cost, a concept's or a unit's search, or a unit's block."""

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
    """Settings of each method on this machine, such as the path of its SAE."""
    progress: Callable[[float], Any] | None = None


@dataclass(frozen=True, eq=False)
class Making:
    """Stage of a run's items."""

    folder: Path
    opening: Callable[[], Opened]
    """Loads what a worker works with; for other processes it is pickled."""

    def open(self) -> Maker:
        return Maker(Run(self.folder), self.opening())

    def path(self, item: Item) -> Path:
        if item.kind == "fit":
            return fit_file(self.folder, item.unit)
        if item.kind == "draw":
            return block_file(self.folder, item.unit, item.number)
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
        self._known: dict[tuple[Any, ...], tuple[Unit, int, str]] | None = None
        self._cut: tuple[Unit, list[list[Case]]] | None = None
        """Blocks of the unit that was drawn last; its searches are done, so they stay the same."""
        suppress_cut_warnings(self._pipe)  # each record states what part of its prompt is truncated

    def __call__(self, item: Item) -> None:
        {"fit": self._fit, "search": self._search, "attack": self._attack, "draw": self._draw}[item.kind](item)

    def close(self) -> None:
        """Detach what is attached."""
        self._attached = None
        self._stack.close()

    def _fit(self, item: Item) -> None:
        self.close()
        unit = item.unit
        try:
            cost = self._fitted(unit)
        except ExciseError as error:
            if is_of_the_disk(error):
                raise
            # That a method cannot erase this concept is a result too, and listed in the report.
            cost = {"refused": str(error)}
        write_atomic(fit_file(self._run.folder, unit), json.dumps(cost, indent=1, sort_keys=True) + "\n")

    def _fitted(self, unit: Unit) -> dict[str, Any]:
        """Fit and save the eraser, and return the cost; nothing for an eraser that was put there."""
        folder, entry = self._run.folder / "erasers" / unit.file, Entry.parse(unit.method)
        if (folder / "manifest.json").exists():
            return {}
        forget_peak()
        began = time.perf_counter()
        eraser = self._made(unit, entry)
        cost: dict[str, Any] = {"seconds": time.perf_counter() - began, "bytes": 0}
        if eraser.edits:
            eraser.save(folder)
            cost["bytes"] = sum(file.stat().st_size for file in folder.iterdir())
        cost["peak_memory"] = peak_memory()
        cost["drawn_with"] = drawn_with(self._pipe)
        cost["weak"] = list(eraser.weak)
        return cost

    def _made(self, unit: Unit, entry: Entry) -> Eraser:
        chosen, settings = method(entry.method), settings_of(entry.method, self._defaults)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WeakEraser)  # recorded in the cost
            config = chosen.Config(**{**settings, **entry.settings})
            return chosen.fit(self._pipe, self._suite.concept(unit.concept), config)

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
            folder, entry = self._run.folder / "erasers" / unit.file, Entry.parse(unit.method)
            saved = (folder / "manifest.json").exists()
            self._eraser = Eraser.load(folder) if saved else self._made(unit, entry)
            settings = {**settings_of(entry.method, self._defaults), **entry.settings}
            self._stack.enter_context(self._eraser.attach(self._pipe, sae=_sae(self._eraser, settings)))
            self._attached = unit
        return self._eraser

    @property
    def _size(self) -> str:
        return str(self._run.plan["size"])

    def _draw(self, item: Item) -> None:
        unit = item.unit
        eraser = self._attach(unit)
        if self._cut is None or self._cut[0] != unit:
            self._cut = unit, cut(self._suite, all_cases(self._run, self._suite, unit))
        block = self._cut[1][item.number]
        records: list[Record] = []
        made_with = drawn_with(self._pipe)
        pictures: dict[str, bytes] = {}
        for start in range(0, len(block), self._suite.batch):
            some = block[start : start + self._suite.batch]
            drawn, seconds, reused = (None if eraser.edits else self._reused(unit, some)) or self._drawn(some)
            pictures |= {case.id: png(picture) for case, picture in zip(some, drawn.pixels, strict=True)}
            lost = {cut.prompt: cut.lost for cut in cuts(self._pipe, [case.prompt for case in some])}
            made = _records(unit, self._suite, some, drawn, seconds, lost)
            taken = reused or [{}] * len(some)
            records += [{"drawn_with": made_with} | record | own for record, own in zip(made, taken, strict=True)]
        write_atomic(block_file(self._run.folder, unit, item.number), blocks.packed(records, pictures))

    def _drawn(self, some: list[Case]) -> tuple[Drawn, float, Sequence[Record]]:
        began = time.perf_counter()
        with by_steps(self._pipe, self._progress, len(some)):
            made = self._suite.draw(self._pipe, some)
        seconds = (time.perf_counter() - began) / len(some)
        return (made if isinstance(made, Drawn) else Drawn.of(made)), seconds, ()

    def _reused(self, unit: Unit, some: list[Case]) -> tuple[Drawn, float, Sequence[Record]] | None:
        """Return a batch that the unerased model has drawn for earlier concepts; None if it has not.

        With each picture comes what its record says of where it was taken from.

        A picture is the same if its prompt, seed and settings are. Batches are taken whole, so that every picture is
        what it would be if it were generated.
        """
        found, records = [], dict[Path, dict[str, Any]]()
        for case in some:
            place = self._places().get(_key(case))
            if place is None or place[0] == unit or not (file := block_file(self._run.folder, *place[:2])).exists():
                return None
            if file not in records:
                records[file] = {row["case"]: row for row in blocks.read_records(file)}
            found.append((from_png(blocks.read_picture(file, place[2])), records[file][place[2]]))
        if self._progress is not None:
            self._progress(len(some))
        pixels = Drawn.of([picture for picture, _ in found]).pixels
        faults = tuple(record["fault"] for _, record in found)
        seconds = sum(record["seconds"] for _, record in found) / len(found)
        origin = [{"reused": row["case"]} | {k: row[k] for k in ("drawn_with",) if k in row} for _, row in found]
        return Drawn(pixels, faults), seconds, origin

    def _places(self) -> dict[tuple[Any, ...], tuple[Unit, int, str]]:
        """Return where each picture of the unerased model is first, by what it depends on: unit, block and case."""
        if self._known is None:
            self._known = {}
            for unit in (unit for unit in self._run.all_units if unit.method == BASELINE):
                for number, block in enumerate(cut(self._suite, self._suite.cases(unit.concept, self._size))):
                    for case in block:
                        self._known.setdefault(_key(case), (unit, number, case.id))
        return self._known


def _key(case: Case) -> tuple[Any, ...]:
    return case.prompt, case.seed, case.guidance, case.width, case.height, case.learnt


def _sae(eraser: Eraser, settings: Mapping[str, Any]) -> TopKSAE | None:
    """Return the SAE that the eraser needs when it is attached, from its method's settings, or None."""
    if not any(edit.needs_sae for edit in eraser.edits):
        return None
    folder = next((value for name, value in settings.items() if name.rpartition(".")[2] == "sae" and value), None)
    return None if folder is None else load_sae(Path(folder))


def _records(
    unit: Unit,
    suite: Suite,
    cases: list[Case],
    drawn: Drawn,
    seconds: float,
    lost: Mapping[str, str],
) -> list[Record]:
    """Return the records of pictures, with the detectors' verdicts on sound pictures.

    If a detector fails or a picture is broken, the record states that instead. `lost` maps prompts to their truncated
    ends.
    """
    sound = [n for n, fault in enumerate(drawn.faults) if fault is None]
    verdicts: list[dict[str, Any]] = [{"fault": fault} for fault in drawn.faults]
    try:
        seen = suite.judge([cases[n] for n in sound], drawn.pixels[sound]) if sound else []
        for n, verdict in zip(sound, seen, strict=True):
            verdicts[n]["seen"] = verdict
    except Exception as error:
        for n in sound:
            verdicts[n] = {"fault": None, "error": f"{type(error).__name__}: {error}"}
    records = []
    for case, picture, verdict in zip(cases, drawn.pixels, verdicts, strict=True):
        records.append(
            {
                "method": unit.method,
                "concept": unit.concept,
                "case": case.id,
                "family": case.family,
                "prompt": case.prompt,
                "seed": case.seed,
                "generator": "cpu",
                "picture": sha256(picture.tobytes()),
                "seconds": round(seconds, 4),
                **({"lost": lost[case.prompt]} if case.prompt in lost else {}),
                **verdict,
            }
        )
    return records
