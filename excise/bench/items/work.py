"""Work on a run: its items on an engine, fits and searches before the blocks that need them, checks after them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from excise.bench.items.cases import all_cases, cut, is_searched
from excise.bench.items.making import Item, Making, Opened, fit_file
from excise.bench.run import BASELINE, Run, Unit
from excise.bench.suite import Suite, read_saved
from excise.engine import Needs, Outcome, is_here
from excise.engine import run as on_engine
from excise.errors import ExciseError, ItemsFailed

NEEDS = Needs()


def work(
    run: Run,
    suite: Suite,
    load: Callable[[], Any],
    defaults: Mapping[str, Mapping[str, Any]],
    progress: Callable[[float], Any] | None = None,
    *,
    opening: Callable[[], Opened] | None = None,
    engine: str | None = None,
    workers: int = 1,
    needs: Needs = NEEDS,
) -> None:
    """Do the rest of a run. Ctrl-C keeps the finished blocks.

    Args:
        run: The run.
        suite: Its suite.
        load: Returns the pipeline; called only if there is work in this process.
        defaults: Settings of each method on this machine, such as the path of its SAE.
        progress: Called with the number of pictures, or fraction of one, that were completed since its last call.
        opening: Loads what workers of other engines need; it is pickled.
        engine: Where to work (`excise.engine.run`); by default in this process, or in `workers` processes.
        workers: Number of workers.
        needs: What each worker needs.

    Raises:
        Unfinished: An item failed; for a slice, one of its own or one that it took over.
        ExciseError: The disk refuses to write, the engine cannot be used, or an earlier version began the run.
    """
    if run.old:
        if not run.is_finished:
            raise ExciseError(
                f"{run.where()} was begun by an earlier version of Excise and is not finished; finish it with that "
                "version, or start another run"
            )
        return
    here = is_here(engine, workers)
    loads = (lambda: Opened(suite, load(), defaults, progress)) if here else _given(opening)
    stage = Making(run.folder, loads, run.remote)
    plan = _Plan(run, suite)
    how: dict[str, Any] = {
        "needs": needs,
        "workers": workers,
        "failures": run.folder / "failures",
        "remote": run.remote,
    }
    failed = []
    with closing(on_engine(engine, stage, plan.first(), then=plan.then, **how)) as outcomes:
        for outcome in outcomes:
            if outcome.state == "failed" and not outcome.elsewhere:
                failed.append(outcome)
            elif outcome.state == "made" and outcome.item.kind == "draw" and progress is not None and not here:
                progress(plan.sizes[outcome.item])
    if failed:
        raise Unfinished(run, failed)


def _given(opening: Callable[[], Opened] | None) -> Callable[[], Opened]:
    if opening is None:
        raise ExciseError("an engine with other processes needs `opening`; leave the engine out")
    return opening


class Unfinished(ItemsFailed):
    """Error for items of a run that failed. The message lists them with their errors."""

    def __init__(self, run: Run, failed: Sequence[Outcome[Item]]) -> None:
        lines = [f"{_in_words(outcome.item)}: {outcome.why}" for outcome in failed]
        more = f" and {len(lines) - 5} more;" if len(lines) > 5 else ""
        super().__init__(
            f"{len(lines)} parts are not done: {'; '.join(lines[:5])};{more} details in {run.where('failures')}; "
            f"try them again with `excise bench resume {run.where()} --retry`"
        )


def _in_words(item: Item) -> str:
    if item.kind == "search":
        return f"the search on {item.of}"
    part = f", block {item.number}" if item.kind == "draw" else f", {item.kind}"
    return f"{item.unit.method} on {item.unit.concept}{part}"


class _Plan:
    """Which items follow from which: fit and concept's search, then the unit's search, its blocks, and its check."""

    def __init__(self, run: Run, suite: Suite) -> None:
        self._run, self._suite = run, suite
        self._attacked: set[Unit] = set()
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
        item = outcome.item
        if outcome.state == "failed":
            return []
        if item.kind == "draw":
            return self._drawn(item)
        if item.kind == "check":
            self._note(item.unit)
            return []
        if item.kind == "attack":
            return self._blocks(item.unit)
        units = [unit for unit in self._run.all_units if item.of in (unit.concept, unit.file)]
        return [Item("attack", unit.file) for unit in units if self._is_ready(unit)]

    def _is_ready(self, unit: Unit) -> bool:
        """Return whether a unit has a fit and its concept a search, for the first time."""
        if unit in self._attacked or not (fit := fit_file(self._run.folder, unit)).exists():
            return False
        if "refused" in read_saved(fit, dict):
            self._note(unit)
            return False
        if not is_searched(self._run, unit.concept):
            return False
        self._attacked.add(unit)
        return True

    def _blocks(self, unit: Unit) -> list[Item]:
        blocks = cut(self._suite, all_cases(self._run, self._suite, unit))
        items = [Item("draw", unit.file, number) for number in range(len(blocks))]
        self.sizes |= dict(zip(items, (sum(map(len, block)) for block in blocks), strict=True))
        self._left[unit] = {item.number for item in items}
        if not items:
            self._note(unit)
        return items

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
