"""Which items of a run follow from which, in an order in which equal pictures are generated once."""

from __future__ import annotations

from excise.bench.items.cases import all_cases, cut, is_searched
from excise.bench.items.making import Item, fit_file
from excise.bench.items.reusing import equal_key
from excise.bench.run import BASELINE, Run, Unit
from excise.bench.suite import Suite, read_saved
from excise.engine import Outcome


class Plan:
    """Fit and concept's search come first, then the unit's search, its blocks, and its check.

    Batches of the unerased model can be taken over by later units (`reusing.py`), so these wait for them: a block of
    the unerased model for the blocks that have its batches first, and all blocks of another method together, because
    each unit's eraser is attached once. So workers side by side generate no picture twice.
    """

    def __init__(self, run: Run, suite: Suite) -> None:
        self._run, self._suite = run, suite
        self._attacked: set[Unit] = set()
        self._ready: set[Unit] = set()
        """Units whose own search is done, and whose blocks are not given out."""
        self._settled: set[Unit] = set()
        """Units whose blocks are known, or that will have none."""
        self._first: dict[tuple[object, ...], Item] = {}
        """The unerased model's block that has a batch first."""
        self._undone: set[Item] = set()
        """Blocks of the unerased model without an outcome."""
        self._waiting: dict[Item, list[tuple[set[Item], list[Item]]]] = {}
        """By block: what else is waited for, and the blocks that wait."""
        self._left: dict[Unit, set[int]] = {}
        self.sizes: dict[Item, int] = {}
        """Pictures in each block."""

    def first(self) -> list[Item]:
        """Return fits and searches in the plan's order."""
        found: dict[Item, None] = {}
        for unit in self._run.all_units:
            found[Item("fit", unit.file)] = None
            found[Item("search", unit.concept)] = None
        return list(found)

    def then(self, outcome: Outcome[Item]) -> list[Item]:
        """Return the items that an outcome makes possible."""
        item, failed = outcome.item, outcome.state == "failed"
        if item.kind == "draw":
            return [*self._released(item), *([] if failed else self._drawn(item))]
        if item.kind == "check":
            if not failed:
                self._note(item.unit)
            return []
        if item.kind == "attack":
            (self._settled if failed else self._ready).add(item.unit)
            return self._blocks()
        units = [unit for unit in self._run.all_units if item.of in (unit.concept, unit.file)]
        if failed:
            self._settled.update(units)
        attacks = [Item("attack", unit.file) for unit in units if not failed and self._is_ready(unit)]
        return [*attacks, *self._blocks()]

    def _is_ready(self, unit: Unit) -> bool:
        """Return whether a unit has a fit and its concept a search, for the first time."""
        if unit in self._attacked or not (fit := fit_file(self._run.folder, unit)).exists():
            return False
        if "refused" in read_saved(fit, dict):
            self._settled.add(unit)
            self._note(unit)
            return False
        if not is_searched(self._run, unit.concept):
            return False
        self._attacked.add(unit)
        return True

    def _blocks(self) -> list[Item]:
        """Return the blocks of units that are ready, if those of every unit of the unerased model before are known."""
        items = []
        for unit in self._run.all_units:
            if unit in self._ready:
                self._ready.discard(unit)
                self._settled.add(unit)
                items += self._cut(unit)
            if unit.method == BASELINE and unit not in self._settled:
                break
        return items

    def _cut(self, unit: Unit) -> list[Item]:
        """Cut a unit's cases into blocks, and return those that wait for no other."""
        blocks = cut(self._suite, all_cases(self._run, self._suite, unit))
        items = [Item("draw", unit.file, number) for number in range(len(blocks))]
        self.sizes |= dict(zip(items, (sum(map(len, block)) for block in blocks), strict=True))
        self._left[unit] = {item.number for item in items}
        if not items:
            self._note(unit)
        before: dict[Item, set[Item]] = {}
        for item, block in zip(items, blocks, strict=True):
            keys = [equal_key(self._suite, batch) for batch in block]
            owners = {self._first[key] for key in keys if key in self._first}
            before[item] = {owner for owner in owners & self._undone if owner.unit != unit}
            if unit.method == BASELINE:
                self._first |= {key: item for key in keys if key not in self._first}
        if unit.method == BASELINE:
            self._undone.update(items)
            return [item for item in items if not self._waits(before[item], [item])]
        return [] if self._waits(set().union(*before.values()), items) else items

    def _waits(self, others: set[Item], items: list[Item]) -> bool:
        """Return whether some blocks must wait for others, and note it."""
        for other in others:
            self._waiting.setdefault(other, []).append((others, items))
        return bool(others)

    def _released(self, done: Item) -> list[Item]:
        """Return the blocks that waited for this one last, whether it was drawn or failed."""
        self._undone.discard(done)
        free = []
        for others, items in self._waiting.pop(done, []):
            others.discard(done)
            if not others:
                free += items
        return free

    def _drawn(self, item: Item) -> list[Item]:
        """Return the check of a unit whose blocks are all drawn, if pictures of it were taken over."""
        unit = item.unit
        self._left[unit].discard(item.number)
        if self._left[unit]:
            return []
        if unit.method != BASELINE and any("reused" in record for record in self._run.records(unit)):
            return [Item("check", unit.file)]
        self._note(unit)
        return []

    def _note(self, unit: Unit) -> None:
        """Note that a unit is done. No work depends on it; `Run.units` reads it."""
        if not (note := self._run.folder / "done" / unit.file).exists():
            self._run.write(note, "")
