"""Engine `ray`: workers are actors of a Ray cluster, which places them by what they need and notices dead nodes.

Actors and not tasks, because Ray ends a worker with a GPU after each task, and the stage would be loaded every time.
Restarts and retries are left to `run`, so that they are counted and recorded as those of every engine.
"""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from excise.engine.stage import Answer, Needs, Stage
from excise.engine.working import attempt, failed, opened
from excise.errors import ExciseError, MissingExtra, one_line

LOOK = 1.0
"""Seconds that one `wait` lasts at most, so that Ctrl-C is noticed."""


@dataclass(eq=False)
class _Worker:
    actor: Any
    opening: Any
    """Reference to the actor's call of `open`."""


class Actors:
    """Pool of `workers` actors on the cluster at `address`, or else on the one that Ray finds, or starts here."""

    def __init__(self, stage: Stage[Any], needs: Needs, workers: int, address: str) -> None:
        self._stage, self._needs, self._workers, self._address = pickle.dumps(stage), needs, workers, address
        self._ray = _ray()
        self._started = False
        self._idle: list[_Worker] = []
        self._busy: dict[Any, tuple[_Worker, Any]] = {}

    def __enter__(self) -> Actors:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        for worker in (*self._idle, *(worker for worker, _ in self._busy.values())):
            self._ray.kill(worker.actor)
        if self._started:
            self._ray.shutdown()

    def free(self) -> bool:
        return len(self._busy) < self._workers

    def submit(self, item: Any) -> None:
        worker = self._idle.pop() if self._idle else self._start()
        self._busy[worker.actor.one.remote(item)] = worker, item

    def wait(self) -> list[tuple[Any, Answer]]:
        answers = []
        for reference in self._ray.wait(list(self._busy), timeout=LOOK)[0]:
            worker, item = self._busy.pop(reference)
            try:
                answer: Answer = self._ray.get(reference)
            except Exception as error:  # `one` raises nothing: the actor, its node or the cluster was lost
                why = f"its worker was lost ({one_line(str(error).strip())[:300]})"
                answer = Answer("lost" if self._is_open(worker) else "unopened", error="Lost", why=why)
            if answer.kind in ("made", "raised"):
                self._idle.append(worker)
            answers.append((item, answer))
        return answers

    def _is_open(self, worker: _Worker) -> bool:
        """Return whether the actor had opened the stage before it died."""
        if not self._ray.wait([worker.opening], timeout=0)[0]:
            return False
        try:
            return self._ray.get(worker.opening) is None
        except Exception:
            return False

    def _start(self) -> _Worker:
        if not self._ray.is_initialized():
            self._connect()
        needs = self._needs
        actor = self._ray.remote(_Actor).options(
            num_cpus=needs.cpus or 1,
            num_gpus=needs.gpus,
            memory=needs.memory or None,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        worker = actor.remote(self._stage, needs.cpus or 1, os.getcwd())
        return _Worker(worker, worker.open.remote())

    def _connect(self) -> None:
        """Connect to the cluster. Raises ExciseError if it cannot be reached."""
        here = {} if self._address or os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        try:
            self._ray.init(address=self._address or None, log_to_driver=False, logging_level="error", **here)
        except Exception as error:
            what = f"the Ray cluster at {self._address}" if self._address else "a Ray cluster"
            raise ExciseError(
                f"cannot connect to {what} ({type(error).__name__}: {str(error)[:300]}); check the address, and that "
                "Ray and Python have the same versions there"
            ) from error
        self._started = True


class _Actor:
    """What runs on a node."""

    def __init__(self, stage: bytes, threads: int, folder: str) -> None:
        self._arguments, self._folder = (stage, threads, 1), folder
        self._make: Callable[[Any], object] | None = None
        self._failure: Answer | None = None

    def open(self) -> Answer | None:
        """Open the stage in the driver's folder, so that paths mean the same. Returns the failure, if it fails."""
        try:
            os.chdir(self._folder)
            self._make = opened(*self._arguments)
        except OSError as error:
            if error.filename == self._folder:
                text = f"a node of the cluster has no folder {self._folder}; work in a folder that all nodes share"
                self._failure = failed(ExciseError(text), "unopened")
            else:
                self._failure = failed(error, "unopened")
        except Exception as error:
            self._failure = failed(error, "unopened")
        return self._failure

    def one(self, item: Any) -> Answer:
        """Make one item."""
        if self._failure is not None or self._make is None:
            return self._failure or Answer("unopened", error="Lost", why="its worker had not opened the stage")
        return attempt(self._make, item)


def _ray() -> Any:
    """Import Ray with its usage statistics off, unless the user has set them. Raises MissingExtra without Ray."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtra("the engine ray needs ray, which is not installed: pip install 'excise[ray]'") from error
