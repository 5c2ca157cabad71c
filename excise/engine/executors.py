"""Engines of plugins: any `concurrent.futures.Executor`, such as those of Dask, MPI and executorlib.

[project.entry-points."excise.engines"]    # a function from (address, workers, needs) to an Executor
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from typing import Any

from excise.engine.stage import Answer, Needs, Stage
from excise.engine.working import attempt, failed, opened

_MAKE: dict[bytes, Callable[[Any], object]] = {}
"""The stage that this worker has open."""


class Executors:
    """Pool of an executor. One that broke is made again; the items that it held may all be innocent."""

    def __init__(self, stage: Stage[Any], needs: Needs, workers: int, executor: Callable[[], Executor]) -> None:
        self._stage, self._cpus, self._workers = pickle.dumps(stage), needs.cpus, workers
        self._executor = executor
        self._open: Executor | None = None
        self._busy: dict[Future[Answer], Any] = {}

    def __enter__(self) -> Executors:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        if self._open is not None:
            # Dask's and others do not know the second argument.
            can = "cancel_futures" in inspect.signature(self._open.shutdown).parameters
            self._open.shutdown(wait=True, **({"cancel_futures": True} if can else {}))

    def free(self) -> bool:
        return len(self._busy) < self._workers

    def submit(self, item: Any) -> None:
        self._open = self._executor() if self._open is None else self._open
        try:
            future = self._open.submit(one, self._stage, self._cpus, item)
        except (BrokenExecutor, RuntimeError):  # it broke since its last item
            self._open = self._executor()
            future = self._open.submit(one, self._stage, self._cpus, item)
        self._busy[future] = item

    def wait(self) -> list[tuple[Any, Answer]]:
        answers = []
        several = len(self._busy) > 1
        for future in wait(self._busy, return_when=FIRST_COMPLETED).done:
            item = self._busy.pop(future)
            try:
                answers.append((item, future.result()))
            except (Exception, CancelledError) as error:  # `one` raises nothing: the worker or the executor did
                broke = isinstance(error, BrokenExecutor)
                self._open = None if broke else self._open
                why = f"its worker was lost ({type(error).__name__}: {error})"
                answers.append((item, Answer("lost", error="Lost", why=why, others=broke and several)))
        return answers


def one(stage: bytes, threads: int, item: Any) -> Answer:
    """Make one item in a worker of any kind, which keeps the stage open for the next item."""
    if stage not in _MAKE:
        _MAKE.clear()
        try:
            _MAKE[stage] = opened(stage, threads, 1)
        except Exception as error:
            return failed(error, "unopened")
    return attempt(_MAKE[stage], item)
