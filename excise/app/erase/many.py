"""Erasers for several concepts by several methods, in parallel and resumable."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from excise.app.erase.benign import with_benign
from excise.app.erase.finding import erase_by
from excise.app.models.devices import card_of, visible_cards
from excise.app.models.knowing import is_snce, refuse_few_pairs, refuse_not_known
from excise.app.models.pipelines import DEFAULT, Weights
from excise.app.models.resolve import concept_named, load_pipeline
from excise.erasers import Eraser
from excise.errors import ExciseError, WeakEraserError
from excise.methods.lookup import named, parsed, preset_settings
from excise.pipeline import Pipeline

State = Literal["made", "kept", "weak", "refused"]


@dataclass(frozen=True)
class Task:
    """One eraser to make."""

    concept: str
    method: str
    out: str
    settings: tuple[str, ...] = ()
    kind: str = "object"
    n: int = 100
    """Prompt pairs."""
    accept_weak: bool = False
    preset: str | None = None
    controls: str = ""
    """File of prompts as users write them; empty: the default ones."""


@dataclass(frozen=True)
class Done:
    """A task's outcome: made, kept because it existed, too weak to be written, or refused.

    `why` gives the reason. For an eraser that was made or kept it states in what it is weak.
    """

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
    concepts: Sequence[str],
    methods: Sequence[str],
    out: Path,
    given: Sequence[str],
    kind: str = "object",
    n: int = 100,
    accept_weak: bool = False,
    preset: str | None = None,
    controls: Path | None = None,
) -> list[Task]:
    """Return a task for every concept and method, each with its own folder in `out`.

    A setting such as `uce.lam=0.1` applies to that method only, one without a method's name to all of them.

    Raises:
        ExciseError: A concept, method, preset or setting is unknown.
    """
    tasks, methods = [], [named(by) for by in methods]
    given = [_with_full_name(setting) for setting in given]
    for name in concepts:
        with_benign(concept_named(name, None, None, kind, n), None, controls=controls)
    for by in methods:
        chosen = tuple(part.removeprefix(f"{by}.") for part in given if _applies(part, by, methods))
        parsed(f"{by}:{','.join(chosen)}")
        preset_settings(by, preset)
        for name in concepts:
            folder = out / f"{name}-{by}".replace(" ", "-")
            tasks.append(Task(name, by, str(folder), chosen, kind, n, accept_weak, preset, str(controls or "")))
    return tasks


def _with_full_name(setting: str) -> str:
    """Return `esd.lr=1e-4` as `esd-x.lr=1e-4`: a short method name is replaced by the full one."""
    by, dot, rest = setting.partition(".")
    return f"{named(by)}{dot}{rest}"


def _applies(setting: str, by: str, methods: Sequence[str]) -> bool:
    """Return whether a setting names this method, or none."""
    name = next((m for m in methods if setting.startswith(f"{m}.")), None)
    return name is None or name == by


def erase_all(
    tasks: Sequence[Task],
    model: str | None,
    device: str = "cpu",
    jobs: int = 1,
    report: Callable[[Done], None] = lambda done: None,
    weights: Weights = DEFAULT,
    *,
    anew: bool = False,
) -> list[Done]:
    """Make every task's eraser with `jobs` processes. Existing erasers are kept unless `anew` is set.

    `report` is called with each outcome. After Ctrl-C finished erasers remain, and the same call resumes trainings from
    their last checkpoint.
    """
    by_number: dict[int, Done] = {}

    def note(number: int, done: Done) -> None:
        by_number[number] = done
        report(done)

    todo = []
    for number, task in enumerate(tasks):
        if not anew and (existing := _existing(task)) is not None:
            note(number, existing)
        else:
            todo.append((number, task))
    if len(todo) > 1 and jobs > 1:
        _distribute(todo, min(jobs, len(todo)), note, (model, device, weights))
    elif todo:
        pipe = load_pipeline(model, device, weights)
        for number, task in todo:
            note(number, _make(pipe, task, model is None))
    return [by_number[number] for number in range(len(tasks))]


def _distribute(
    todo: Sequence[tuple[int, Task]],
    jobs: int,
    note: Callable[[int, Done], None],
    model: tuple[str | None, str, Weights],
) -> None:
    """Make the erasers with `jobs` processes, which each load the model. `note` is called with each outcome."""
    spawned = multiprocessing.get_context("spawn")
    waiting, results = spawned.Queue(), spawned.Queue()
    workers = [spawned.Process(target=_work, args=(waiting, results, model, jobs, n), daemon=True) for n in range(jobs)]
    for numbered in (*todo, *[None] * jobs):
        waiting.put(numbered)
    left = len(todo)
    try:
        for worker in workers:
            worker.start()
        while left:
            alive = any(worker.is_alive() for worker in workers)
            try:
                made = results.get(timeout=0.5)
            except queue.Empty:
                if not alive:
                    raise ExciseError(
                        f"all processes ended early ({left} of {len(todo)} erasers are left), perhaps for lack of "
                        "memory; run it again with a smaller --jobs"
                    ) from None
            else:
                left -= 1
                note(*made)
    except BaseException:
        stop(workers)
        raise
    for worker in workers:
        worker.join()


def _work(waiting: Any, results: Any, model: tuple[str | None, str, Weights], jobs: int, number: int) -> None:
    """Make erasers in worker `number`, with its share of the CPU cores, and its own GPU if there are enough."""
    parent = os.getppid()
    # In its own session the worker does not receive Ctrl-C from the terminal: the parent passes it on, once.
    with suppress(OSError):
        os.setsid()
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    name, device, weights = model
    try:
        pipe = load_pipeline(name, card_of(device, visible_cards(), number), weights)
        while (numbered := waiting.get()) is not None and os.getppid() == parent:
            place, task = numbered
            results.put((place, _make(pipe, task, name is None)))
    except KeyboardInterrupt:
        pass


def stop(workers: Sequence[Any], patience: float = 60.0) -> None:
    """End the workers. A training gets `patience` seconds to write its checkpoint."""
    for worker in workers:
        if worker.is_alive():
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGINT)
    for worker in workers:
        if worker.pid is not None:
            worker.join(patience)
            worker.kill()


def _existing(task: Task) -> Done | None:
    """Return the outcome of a task whose folder holds an eraser: kept, or refused if it is damaged or another's."""
    if not (Path(task.out) / "manifest.json").exists():
        return None
    named = (task.concept, task.method, task.out)
    try:
        eraser = Eraser.load(task.out)
    except ExciseError as error:
        return Done(*named, state="refused", why=str(error))
    if (difference := _difference(eraser, task)) is not None:
        why = f"{task.out} holds an eraser {difference}; delete it or name another folder"
        return Done(*named, state="refused", why=why)
    return Done(*named, state="kept", bytes=_size(task.out), why="; ".join(eraser.weak))


def _difference(eraser: Eraser, task: Task) -> str | None:
    """Return how an eraser differs from the task's: in its concept, or in the value of a given setting."""
    if eraser.concept != task.concept:
        return f"of {eraser.concept!r}"
    made = eraser.created.get("config", {})
    for key, value in parsed(f"{task.method}:{','.join(task.settings)}")[1].items():
        known = key in made and key.rpartition(".")[2] != "sae"  # the eraser only stores the name of the SAE's folder
        if known and made[key] != (list(value) if isinstance(value, tuple) else value):
            return f"made with {key}={made[key]}"
    return None


def _make(pipe: Pipeline, task: Task, bundled: bool) -> Done:
    named, started = (task.concept, task.method, task.out), time.perf_counter()
    try:
        concept = concept_named(task.concept, None, None, task.kind, task.n)
        if is_snce(task.method) and not task.accept_weak:
            refuse_few_pairs(concept)
        if bundled and not task.accept_weak:
            refuse_not_known(concept)
        controls = Path(task.controls) if task.controls else None
        concept = with_benign(concept, None if bundled else pipe, controls=controls)
        eraser = erase_by(
            pipe,
            concept,
            task.method,
            task.settings,
            Path(task.out),
            bundled=bundled,
            preset=task.preset,
            accept_weak=task.accept_weak,
        )
    except ExciseError as error:
        state: State = "weak" if isinstance(error, WeakEraserError) else "refused"
        return Done(*named, state=state, seconds=time.perf_counter() - started, why=str(error))
    except Exception as error:  # a failed task must not end the worker, which has other tasks
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return Done(*named, state="refused", why=f"failed with {message}")
    why = "; ".join(eraser.weak)
    return Done(*named, state="made", seconds=time.perf_counter() - started, bytes=_size(task.out), why=why)


def _size(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).iterdir())
