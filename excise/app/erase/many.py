"""Erasers of several concepts by several methods, side by side, going on where it was stopped."""

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

from excise.app.erase.finding import erase_by
from excise.app.models.devices import card_of, visible_cards
from excise.app.models.knowing import is_snce, refuse_few_pairs, refuse_not_drawn
from excise.app.models.pipelines import DEFAULT, Weights
from excise.app.models.resolve import concept_named, load_pipeline
from excise.erasers import Eraser
from excise.errors import ExciseError, WeakEraserError
from excise.methods.lookup import named, parsed, preset_settings
from excise.pipeline import Pipeline

State = Literal["made", "kept", "weak", "refused"]


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
    accept_weak: bool = False
    preset: str | None = None


@dataclass(frozen=True)
class Done:
    """What became of it: made, there already, too weak and so not written, or refused; and why. `why` of one that was
    made or kept says in what it is weak."""

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
) -> list[Task]:
    """A task for every concept and method, each with a folder of its own in `out`.

    A setting such as `uce.lam=0.1` is that method's alone, one without a method's name goes to all of them. Raises
    ExciseError for an unknown concept, method, preset or setting before anything is begun.
    """
    tasks, methods = [], [named(by) for by in methods]
    given = [_by_own_name(setting) for setting in given]
    for name in concepts:
        concept_named(name, None, None, kind, n)
    for by in methods:
        own = tuple(part.removeprefix(f"{by}.") for part in given if _for(part, by, methods))
        parsed(f"{by}:{','.join(own)}")
        preset_settings(by, preset)
        for name in concepts:
            folder = out / f"{name}-{by}".replace(" ", "-")
            tasks.append(Task(name, by, str(folder), own, kind, n, accept_weak, preset))
    return tasks


def _by_own_name(setting: str) -> str:
    """`esd.lr=1e-4` as `esd-x.lr=1e-4`: the method that a setting is of, if one, by its own name."""
    by, dot, rest = setting.partition(".")
    return f"{named(by)}{dot}{rest}"


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
    weights: Weights = DEFAULT,
    *,
    anew: bool = False,
) -> list[Done]:
    """Every task's eraser, by so many processes at once; those that are there already are kept, unless `anew`.

    `told` hears of each when it is done. Ctrl-C leaves what is done, and trainings that go on from their last
    checkpoint when the same is asked for again.
    """
    by_number: dict[int, Done] = {}

    def note(number: int, done: Done) -> None:
        by_number[number] = done
        told(done)

    todo = []
    for number, task in enumerate(tasks):
        if not anew and (there := _there(task)) is not None:
            note(number, there)
        else:
            todo.append((number, task))
    if len(todo) > 1 and jobs > 1:
        _spread(todo, min(jobs, len(todo)), note, (model, device, weights))
    elif todo:
        pipe = load_pipeline(model, device, weights)
        for number, task in todo:
            note(number, _made(pipe, task, model is None))
    return [by_number[number] for number in range(len(tasks))]


def _spread(
    todo: Sequence[tuple[int, Task]],
    jobs: int,
    note: Callable[[int, Done], None],
    named: tuple[str | None, str, Weights],
) -> None:
    """Have so many processes make the erasers of the model `named`; `note` hears of each by its number."""
    spawned = multiprocessing.get_context("spawn")
    waiting, results = spawned.Queue(), spawned.Queue()
    workers = [spawned.Process(target=_work, args=(waiting, results, named, jobs, n), daemon=True) for n in range(jobs)]
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
                        f"every process ended before all was done ({left} of {len(todo)} are left); perhaps memory "
                        "did not suffice: call it again with a smaller --jobs"
                    ) from None
            else:
                left -= 1
                note(*made)
    except BaseException:
        stop(workers)
        raise
    for worker in workers:
        worker.join()


def _work(waiting: Any, results: Any, named: tuple[str | None, str, Weights], jobs: int, number: int) -> None:
    """Worker `number` of so many: makes one task's eraser after the other, with its share of the machine's cores, and
    a graphics card of its own where there are as many."""
    parent = os.getppid()
    # Ctrl-C at the terminal is the parent's to pass on, once.
    with suppress(OSError):
        os.setsid()
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    model, device, weights = named
    try:
        pipe = load_pipeline(model, card_of(device, visible_cards(), number), weights)
        while (numbered := waiting.get()) is not None and os.getppid() == parent:
            place, task = numbered
            results.put((place, _made(pipe, task, model is None)))
    except KeyboardInterrupt:
        pass


def stop(workers: Sequence[Any], patience: float = 60.0) -> None:
    """End those that still run: a training is given time to write its checkpoint."""
    for worker in workers:
        if worker.is_alive():
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGINT)
    for worker in workers:
        if worker.pid is not None:
            worker.join(patience)
            worker.kill()


def _there(task: Task) -> Done | None:
    """What becomes of a task whose folder holds an eraser: it is kept, or refused where it is another's or damaged."""
    if not (Path(task.out) / "manifest.json").exists():
        return None
    own = (task.concept, task.method, task.out)
    try:
        eraser = Eraser.load(task.out)
    except ExciseError as error:
        return Done(*own, state="refused", why=str(error))
    if (odd := _another(eraser, task)) is not None:
        why = f"{task.out} holds an eraser {odd}; delete it or name another folder"
        return Done(*own, state="refused", why=why)
    return Done(*own, state="kept", bytes=_size(task.out), why="; ".join(eraser.weak))


def _another(eraser: Eraser, task: Task) -> str | None:
    """What an eraser is that is not the task's: another concept's, or made with another value of a given setting."""
    if eraser.concept != task.concept:
        return f"of {eraser.concept!r}"
    made = eraser.created.get("config", {})
    for key, value in parsed(f"{task.method}:{','.join(task.settings)}")[1].items():
        known = key in made and key.rpartition(".")[2] != "sae"  # of an SAE it knows the folder's name alone
        if known and made[key] != (list(value) if isinstance(value, tuple) else value):
            return f"made with {key}={made[key]}"
    return None


def _made(pipe: Pipeline, task: Task, bundled: bool) -> Done:
    own, started = (task.concept, task.method, task.out), time.perf_counter()
    try:
        concept = concept_named(task.concept, None, None, task.kind, task.n)
        if is_snce(task.method) and not task.accept_weak:
            refuse_few_pairs(concept)
        if bundled and not task.accept_weak:
            refuse_not_drawn(concept)
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
        return Done(*own, state=state, seconds=time.perf_counter() - started, why=str(error))
    except Exception as error:  # one task that cannot be done must not end the process that has others to do
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return Done(*own, state="refused", why=f"failed with {said}")
    why = "; ".join(eraser.weak)
    return Done(*own, state="made", seconds=time.perf_counter() - started, bytes=_size(task.out), why=why)


def _size(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).iterdir())
