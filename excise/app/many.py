"""Erasers of several concepts by several methods, side by side, going on where it was stopped."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from excise.app.finding import erase_by
from excise.app.models import concept_named, load_pipeline
from excise.erasers import Eraser
from excise.errors import ExciseError
from excise.methods.base import parsed

State = Literal["made", "kept", "refused"]


@dataclass(frozen=True)
class Task:
    """One eraser that is to be made."""

    concept: str
    method: str
    out: str
    settings: tuple[str, ...] = ()
    kind: str = "object"
    n: int = 100
    """Prompt pairs."""


@dataclass(frozen=True)
class Done:
    """What became of it: made, there already, or refused and why."""

    concept: str
    method: str
    out: str
    state: State
    seconds: float = 0.0
    bytes: int = 0
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    concepts: Sequence[str], methods: Sequence[str], out: Path, given: Sequence[str], kind: str = "object", n: int = 100
) -> list[Task]:
    """A task for every concept and method, each with a folder of its own in `out`.

    A setting such as `uce.lam=0.1` is that method's alone, one without a method's name goes to all of them. Raises
    ExciseError for an unknown concept, method or setting before anything is begun.
    """
    tasks = []
    for name in concepts:
        concept_named(name, None, None, kind, n)
    for by in methods:
        own = tuple(part.removeprefix(f"{by}.") for part in given if _for(part, by, methods))
        parsed(f"{by}:{','.join(own)}")
        for name in concepts:
            folder = out / f"{name}-{by}".replace(" ", "-")
            tasks.append(Task(name, by, str(folder), own, kind, n))
    return tasks


def _for(setting: str, by: str, methods: Sequence[str]) -> bool:
    """Whether a setting is this method's: by name, or nobody's by name."""
    name = next((m for m in methods if setting.startswith(f"{m}.")), None)
    return name is None or name == by


def erase_all(
    tasks: Sequence[Task],
    model: str | None,
    device: str = "cpu",
    jobs: int = 1,
    told: Callable[[Done], None] = lambda done: None,
) -> list[Done]:
    """Every task's eraser, by so many processes at once; those that are there already are kept.

    `told` hears of each when it is done. Ctrl-C leaves what is done, and trainings that go on from their last
    checkpoint when the same is asked for again.
    """
    if jobs <= 1 or len(tasks) <= 1:
        todo = [task for task in tasks if not _there(task)]
        pipe = load_pipeline(model, device) if todo else None
        found = []
        for task in tasks:
            found.append(_made(pipe, task, model is None))
            told(found[-1])
        return found
    spawned = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), spawned, _begin, (model, device, jobs))
    try:
        waiting = {pool.submit(_of_worker, task, model is None): n for n, task in enumerate(tasks)}
        by_number = {}
        for future in as_completed(waiting):
            by_number[waiting[future]] = done = future.result()
            told(done)
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()
    return [by_number[n] for n in range(len(tasks))]


_PIPE: Any = None


def _begin(model: str | None, device: str, jobs: int) -> None:
    """In a worker, once: its pipeline, and its share of the machine's cores."""
    global _PIPE
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    _PIPE = load_pipeline(model, device)


def _of_worker(task: Task, bundled: bool) -> Done:
    return _made(_PIPE, task, bundled)


def _there(task: Task) -> Eraser | None:
    """The eraser in a task's folder, if it is whole and that method's."""
    if not (Path(task.out) / "manifest.json").exists():
        return None
    eraser = Eraser.load(task.out)
    if eraser.concept != task.concept:
        raise ExciseError(f"{task.out} holds an eraser of {eraser.concept!r}; delete it or name another folder")
    return eraser


def _made(pipe: Any, task: Task, bundled: bool) -> Done:
    own, started = (task.concept, task.method, task.out), time.perf_counter()
    try:
        if _there(task) is not None:
            return Done(*own, state="kept", bytes=_size(task.out))
        concept = concept_named(task.concept, None, None, task.kind, task.n)
        erase_by(pipe, concept, task.method, task.settings, Path(task.out), bundled=bundled)
    except ExciseError as error:
        return Done(*own, state="refused", why=str(error))
    return Done(*own, state="made", seconds=time.perf_counter() - started, bytes=_size(task.out))


def _size(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).iterdir())
