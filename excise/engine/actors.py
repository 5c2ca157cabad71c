"""Engine `ray`: workers are actors of a Ray cluster, which places them by what they need and notices dead nodes.

Actors and not tasks, because Ray ends a worker with a GPU after each task, and the stage would be loaded every time.
Restarts and retries are left to `run`, so that they are counted and recorded as those of every engine.
"""

from __future__ import annotations

import importlib
import os
import pickle
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from excise.engine.stage import Answer, Needs, Stage
from excise.engine.working import attempt, failed, opened
from excise.errors import ExciseError, MissingExtra, one_line

LOOK = 1.0
"""Seconds that one `wait` lasts at most, so that Ctrl-C is noticed."""


class Actors:
    """Pool of `workers` actors on the cluster at `address`, or else on the one that Ray finds, or starts here.

    An item waits here, and not at an actor that may never find room: when nodes are lost, the others take it.
    """

    def __init__(self, stage: Stage[Any], needs: Needs, workers: int, address: str) -> None:
        self._stage, self._needs, self._workers, self._address = pickle.dumps(stage), needs, workers, address
        self._ray = _ray()
        self._started = self._checked = False
        self._waiting: deque[Any] = deque()
        self._idle: list[Any] = []
        self._opening: dict[Any, Any] = {}
        """Actors by the reference to their `open`."""
        self._busy: dict[Any, tuple[Any, Any]] = {}
        """Actors and their items by the reference to their `one`."""

    def __enter__(self) -> Actors:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        for actor in (*self._idle, *self._opening.values(), *(actor for actor, _ in self._busy.values())):
            self._ray.kill(actor)
        if self._started:
            self._ray.shutdown()

    def free(self) -> bool:
        return len(self._waiting) + len(self._busy) < self._workers

    def submit(self, item: Any) -> None:
        self._waiting.append(item)
        self._distribute()
        for _ in range(len(self._waiting) - len(self._opening)):
            actor = self._start()
            self._opening[actor.open.remote()] = actor

    def wait(self) -> list[tuple[Any, Answer]]:
        answers = []
        references = [*self._opening, *self._busy]
        for reference in (
            self._ray.wait(references, num_returns=len(references), timeout=0)[0]
            or (self._ray.wait(references, timeout=LOOK)[0])
        ):
            actor, item = self._busy.pop(reference, (None, None))
            opening = actor is None
            actor = self._opening.pop(reference) if opening else actor
            try:
                answer: Answer | None = self._ray.get(reference)
            except Exception as error:  # the methods raise nothing: the actor, its node or the cluster was lost
                why = f"its worker was lost ({one_line(str(error).strip())[:300]})"
                answer = Answer("unopened" if opening else "lost", error="Lost", why=why)
            if answer is None or answer.kind in ("made", "raised"):
                self._idle.append(actor)
            if not opening and answer is not None:
                answers.append((item, answer))
            elif answer is not None and self._waiting:
                answers.append((self._waiting.popleft(), answer))
        self._distribute()
        return answers

    def _distribute(self) -> None:
        while self._waiting and self._idle:
            actor, item = self._idle.pop(), self._waiting.popleft()
            self._busy[actor.one.remote(item)] = actor, item

    def _start(self) -> Any:
        if not self._ray.is_initialized():
            self._connect()
        needs = self._needs
        if not self._checked:
            self._check_room()
            self._checked = True
        actor = self._ray.remote(_Actor).options(
            num_cpus=needs.cpus or 1,
            num_gpus=needs.gpus,
            memory=needs.memory or None,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        return actor.remote(self._stage, needs.cpus or 1, os.getcwd())

    def _check_room(self) -> None:
        """Raise ExciseError if no node of the cluster could ever hold a worker: Ray would wait for one without end."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        wanted = {"CPU": self._needs.cpus or 1, "GPU": self._needs.gpus, "memory": self._needs.memory}
        wanted = {kind: amount for kind, amount in wanted.items() if amount}
        if any(all(node.get(kind, 0) >= amount for kind, amount in wanted.items()) for node in nodes):
            return
        raise ExciseError(
            f"no node of the Ray cluster has room for a worker, which needs {_listed(wanted)}; the largest has "
            f"{_listed({kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in wanted})}; start a "
            "larger node first, or ask for less (without a GPU: --device cpu)"
        )

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

    def open(self) -> Answer | None:
        """Open the stage in the driver's folder, so that paths mean the same. Returns the failure, if it fails."""
        try:
            os.chdir(self._folder)
        except OSError:
            text = f"a node of the cluster has no folder {self._folder}; work in a folder that all nodes share"
            return failed(ExciseError(text), "unopened")
        try:
            self._make = opened(*self._arguments)
        except Exception as error:
            return failed(error, "unopened")
        return None

    def one(self, item: Any) -> Answer:
        """Make one item."""
        assert self._make is not None
        return attempt(self._make, item)


def _listed(amounts: Mapping[str, float]) -> str:
    units = {"CPU": "CPU cores", "GPU": "GPUs", "memory": "bytes of memory"}
    return ", ".join(f"{amount:g} {units[kind]}" for kind, amount in amounts.items())


def _ray() -> Any:
    """Import Ray with its usage statistics off, unless the user has set them. Raises MissingExtra without Ray."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtra("the engine ray needs ray, which is not installed: pip install 'excise[ray]'") from error
