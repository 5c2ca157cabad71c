"""The seam: `run` makes every item of a stage on one of the engines."""

from __future__ import annotations

import zlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from excise.engine.engines import Chosen, chosen, is_first
from excise.engine.failures import Failures, check_made
from excise.engine.stage import Answer, Item, Needs, Outcome, Pool, Stage
from excise.errors import ExciseError, InvalidSetting
from excise.remote import Remote

NEEDS = Needs()


def run(
    engine: str | None,
    stage: Stage[Item],
    items: Sequence[Item],
    *,
    needs: Needs = NEEDS,
    workers: int = 1,
    tries: int = 3,
    failures: Path | None = None,
    retry: bool = False,
    again: bool = False,
    then: Callable[[Outcome[Item]], Sequence[Item]] | None = None,
    remote: Remote | None = None,
) -> Generator[Outcome[Item], None, None]:
    """Make the items whose file does not exist, and yield one outcome for each item, as it is known.

    An item that raises an error has failed at once. An item whose worker dies is tried again behind all others, up to
    `tries` times: it cannot take the others along. Both are set aside: written to `failures`, and not tried by later
    calls without `retry`. Errors that a user can fix (ExciseError) are not set aside.

    A slice has an outcome for each item too. It answers for its own items and for those that it took over; the others'
    outcomes are marked `elsewhere`.

    Close the iterator to end the workers early (`contextlib.closing`).

    Args:
        engine: `local`, `processes[:N]`, `slice[:I/N]`, `ray[://HOST:PORT]`, or a plugin's. None: `local` with one
            worker, else `processes`.
        stage: What is done to each item.
        items: The items.
        needs: What each worker needs.
        workers: Number of workers; of a slice, those of this slice.
        tries: How many workers an item may cost.
        failures: Folder for failed items; None keeps no record.
        retry: Try items that were set aside before.
        again: Make items whose file exists too.
        then: Called with each outcome before it is yielded; returns further items. They come before the others.
        remote: Folder in an object store, if items' files and `failures` are in its copy. An item is done if the store
            has its file. The stage writes there.

    Raises:
        InvalidSetting: The engine is unknown or its numbers are impossible, or `again` is set for a slice.
        ExciseError: Two items have one name; while iterating also: no worker could open the stage, or the disk refuses.
        Exception: Whatever opening the stage raises in the engine `local`.
    """
    engine_ = chosen(engine, workers)
    if engine_.part is not None and again:
        raise InvalidSetting("a slice cannot make existing files again: it would take the others' old ones for new")
    if tries < 1:
        raise InvalidSetting(f"{tries} tries cannot be made; give 1 or more")
    if twice := [name for name, n in Counter(map(stage.name, items)).items() if n > 1]:
        raise ExciseError(f"two items are called {twice[0]!r}; leave one of them out")
    noted = Failures(failures, stage, remote)
    return _Run(engine_, stage, items, needs, tries, noted, retry, again, then, remote).outcomes()


def make_all(
    engine: str | None,
    stage: Stage[Item],
    items: Sequence[Item],
    *,
    failures: Path,
    then: Callable[[Outcome[Item]], object] = lambda outcome: None,
    workers: int = 1,
    **how: Any,
) -> bool:
    """Make all items with `run` and its options `how`. `then` is called with each outcome.

    Return whether all are made. It is False only in a slice, if another slice failed at an item. The first slice ends
    the work, so it needs every item.

    Raises:
        ItemsFailed: An item was set aside.
        ExciseError: An item failed for a reason that a user can fix, or what `run` raises it for.
    """
    outcomes = []
    with closing(run(engine, stage, items, failures=failures, workers=workers, **how)) as making:
        for outcome in making:
            outcomes.append(outcome)
            then(outcome)
    needs_all = is_first(engine, workers)
    check_made([outcome for outcome in outcomes if needs_all or not outcome.elsewhere], stage.name, failures)
    return all(outcome.state != "failed" for outcome in outcomes)


class _Run:
    """State of one call: what is left to do, what is being done, and how often each item was tried."""

    def __init__(
        self,
        engine: Chosen,
        stage: Stage[Any],
        items: Sequence[Any],
        needs: Needs,
        tries: int,
        failures: Failures,
        retry: bool,
        again: bool,
        then: Callable[[Outcome[Any]], Sequence[Any]] | None,
        remote: Remote | None,
    ) -> None:
        self._stage, self._tries, self._failures, self._remote = stage, tries, failures, remote
        self._retry, self._again, self._then, self._part = retry, again, then, engine.part
        mine, others = engine.part.divided(items) if engine.part is not None else (list(items), [])
        self._sliced = engine.part is not None
        self._todo, self._later = deque(mine), deque(others)
        self._others = {stage.name(item) for item in others}
        """Names of the items of other slices."""
        self._alone: deque[Any] = deque()
        """Items that were lost together. Each is tried while nothing else runs, to find the one that kills workers."""
        self._old = failures.records()
        """Failures from before this call. Where their owners try them again, other slices do not believe them."""
        self._busy: set[str] = set()
        self._tried: Counter[str] = Counter()
        self._unopened = 0
        self._pool = engine.pool(stage, needs, len(items))

    def outcomes(self) -> Generator[Outcome[Any], None, None]:
        for item in self._todo:
            self._forget(item)
        with self._pool as pool:
            while self._todo or self._later or self._alone or self._busy:
                for outcome in self._submit(pool):
                    self._add(outcome)
                    yield outcome
                if self._busy:
                    together = len(self._busy) > 1
                    for item, answer in pool.wait():
                        for outcome in self._settle(item, answer, together):
                            self._add(outcome)
                            yield outcome

    def _forget(self, item: Any) -> None:
        """Forget an earlier failure of an item that this call is to try."""
        if (failure := self._failures.read(item)) is not None and self._is_tried_again(failure):
            self._failures.forget(item)

    def _is_tried_again(self, failure: Mapping[str, Any]) -> bool:
        return self._retry or bool(failure.get("expected"))

    def _add(self, outcome: Outcome[Any]) -> None:
        """Take in the items that follow from an outcome. Those of slices are divided by their names."""
        for item in reversed(self._then(outcome) if self._then is not None else ()):
            name = self._stage.name(item)
            if self._part is None or zlib.crc32(name.encode()) % self._part.count == self._part.index:
                self._forget(item)
                self._todo.appendleft(item)
            else:
                self._others.add(name)
                self._later.append(item)

    def _submit(self, pool: Pool) -> Iterator[Outcome[Any]]:
        """Give items to free workers, and yield the outcomes of those that need none."""
        while pool.free():
            # Wait for what runs, if an item must run alone, or if workers start and die.
            if self._busy and (self._unopened >= self._tries or (self._alone and not self._todo)):
                return
            queue = self._todo or self._alone or self._later
            if not queue:
                return
            item = queue.popleft()
            if (outcome := self._known(item)) is not None:
                yield outcome
                continue
            name = self._stage.name(item)
            self._busy.add(name)
            self._tried[name] += 1
            pool.submit(item)

    def _known(self, item: Any) -> Outcome[Any] | None:
        """Return the outcome of an item that is done or set aside, as of now: another call may have made it."""
        if (outcome := self._kept(item)) is not None:
            return outcome
        failure = self._failures.read(item)
        if failure is None or (failure.get("record") in self._old and self._is_tried_again(failure)):
            return None
        error, why = str(failure.get("error", "")), str(failure.get("why", ""))
        elsewhere = self._stage.name(item) in self._others
        return Outcome(item, "failed", error=error, why=why, aside=not failure.get("expected"), elsewhere=elsewhere)

    def _kept(self, item: Any) -> Outcome[Any] | None:
        """Return the outcome of an item whose file exists, and forget that it failed."""
        if self._again or not self._is_done(item):
            return None
        self._failures.forget(item)
        name = self._stage.name(item)
        return Outcome(item, "kept", tries=self._tried[name], elsewhere=name in self._others)

    def _is_done(self, item: Any) -> bool:
        """Return whether an item's file exists, and fetch it to the copy of an object store."""
        path = self._stage.path(item)
        return path.exists() or (self._remote is not None and self._remote.fetch(path))

    def _settle(self, item: Any, answer: Answer, together: bool) -> Iterator[Outcome[Any]]:
        """Yield the outcome of a try, unless the item is tried again."""
        name = self._stage.name(item)
        self._busy.discard(name)
        if answer.kind == "unopened":
            self._tried[name] -= 1
            self._todo.appendleft(item)
            self._unopened += 1
            if answer.error != "Lost" or (self._unopened >= self._tries and not self._busy):
                raise ExciseError(answer.why if answer.expected else f"no worker could start: {answer.why}")
            return
        self._unopened = 0
        if answer.disk:
            raise ExciseError(answer.why)
        if answer.kind == "made":
            self._is_done(item)  # the worker's copy of an object store may be another machine's
            self._failures.forget(item)
            yield Outcome(item, "made", answer.seconds, self._tried[name], why=answer.why)
        elif (outcome := self._kept(item)) is not None:  # another call made it while this try failed
            yield outcome
        elif answer.kind == "lost" and answer.others and together:
            self._tried[name] -= 1
            self._alone.append(item)
        elif answer.kind == "lost" and self._tried[name] < self._tries:
            (self._alone if answer.others else self._todo).append(item)
        else:
            yield self._failed(item, name, answer)

    def _failed(self, item: Any, name: str, answer: Answer) -> Outcome[Any]:
        tries = self._tried[name]
        # Slices read each other's failures, so that they do not repeat them when they help out.
        if self._sliced or not answer.expected:
            self._failures.write(item, answer, tries)
        return Outcome(item, "failed", answer.seconds, tries, answer.error, answer.why, aside=not answer.expected)
