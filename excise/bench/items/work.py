"""Work on a run: its items on an engine, fits and searches before the blocks that need them, checks after them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from excise.bench.items.making import Item, Making, Opened
from excise.bench.items.plan import Plan
from excise.bench.run import Run
from excise.bench.suite import Suite
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
        defaults: By the run's row, settings on this machine that its label does not give, such as the path of an SAE.
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
    plan = Plan(run, suite)
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
