"""Engine `ray`: workers are actors of a Ray cluster, which places them by what they need and notices dead nodes.

Actors and not tasks, because Ray ends a worker with a GPU after each task, and the stage would be loaded every time.
Restarts and retries are left to `run`, so that they are counted and recorded as those of every engine.
"""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Callable
from typing import Any

from excise.engine.cluster import LOOK, check_room, connect, enter, imported, resources
from excise.engine.stage import Answer, Needs, Stage
from excise.engine.working import attempt, failed, opened
from excise.errors import one_line


class Actors:
    """Pool of `workers` actors on the cluster at `address`, or else on the one that Ray finds, or starts here.

    An item waits here, and not at an actor that may never find room: when nodes are lost, the others take it.
    """

    def __init__(self, stage: Stage[Any], needs: Needs, workers: int, address: str) -> None:
        self._stage, self._needs, self._workers, self._address = pickle.dumps(stage), needs, workers, address
        self._ray = imported()
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
        self._started = connect(self._address) or self._started
        if not self._checked:
            check_room(self._needs)
            self._checked = True
        wanted = resources(self._needs)
        actor = self._ray.remote(_Actor).options(
            num_cpus=wanted["CPU"],
            num_gpus=wanted.get("GPU", 0),
            memory=wanted.get("memory"),
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        return actor.remote(self._stage, wanted["CPU"], os.getcwd())


class _Actor:
    """What runs on a node."""

    def __init__(self, stage: bytes, threads: int, folder: str) -> None:
        self._arguments, self._folder = (stage, threads, 1), folder
        self._make: Callable[[Any], object] | None = None

    def open(self) -> Answer | None:
        """Open the stage in the driver's folder. Returns the failure, if it fails."""
        try:
            enter(self._folder)
            self._make = opened(*self._arguments)
        except Exception as error:
            return failed(error, "unopened")
        return None

    def one(self, item: Any) -> Answer:
        """Make one item."""
        assert self._make is not None
        return attempt(self._make, item)
