"""Erasers for several concepts by several methods, in parallel and resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from excise.app.erase.benign import with_benign
from excise.app.erase.finding import erase_by
from excise.app.models.knowing import is_snce, refuse_few_pairs, refuse_not_known
from excise.app.models.loader import Loader
from excise.app.models.pipelines import DEFAULT, Weights
from excise.app.models.resolve import concept_named
from excise.engine import Outcome, run
from excise.erasers import Eraser
from excise.errors import ExciseError
from excise.methods.lookup import named, parsed, preset_settings
from excise.pipeline import Pipeline

State = Literal["made", "kept", "weak", "refused", "failed"]


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
    """A task's outcome: made, kept because it existed, too weak to be written, refused, or failed.

    A task that a user can change was refused. One that failed raised another error, or its workers died. `why` gives
    the reason. For an eraser that was made or kept it states in what it is weak.
    """

    concept: str
    method: str
    out: str
    state: State
    seconds: float = 0.0
    bytes: int = 0
    why: str = ""
    elsewhere: bool = False
    """Whether another slice made the eraser or failed at it. That slice's exit code speaks of it."""

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
    workers: int = 1,
    report: Callable[[Done], None] = lambda done: None,
    weights: Weights = DEFAULT,
    *,
    engine: str | None = None,
    failures: Path | None = None,
    retry: bool = False,
    again: bool = False,
) -> list[Done]:
    """Make every task's eraser on an engine (`excise.engine.run`). Existing erasers are kept unless `again` is set.

    After Ctrl-C finished erasers remain, and the same call resumes trainings from their last checkpoint.

    Args:
        tasks: The erasers to make.
        model: Folder or hub name of a pipeline; None for the bundled model. Every worker loads it.
        device: Device of each worker. With `cuda`, workers take turns over the GPUs.
        workers: Number of workers.
        report: Called with each outcome.
        weights: How to load the model.
        engine: Name of the engine; by default this process, or `workers` processes.
        failures: Folder for tasks that failed for a reason that no user can fix. Later calls leave them out.
        retry: Whether to try those tasks again.
        again: Whether to make existing erasers again.

    Raises:
        ExciseError: The engine cannot be used, or no worker can load the model.
    """
    load, by_out = Loader(model, device, weights), dict[str, Done]()
    how: dict[str, Any] = {"failures": failures, "retry": retry or again, "again": again}
    made = run(engine, Making(load), tasks, needs=load.needs, workers=workers, **how)
    with closing(made) as outcomes:
        for outcome in outcomes:
            by_out[outcome.item.out] = replace(_done(outcome), elsewhere=outcome.elsewhere)
            report(by_out[outcome.item.out])
    return [by_out[task.out] for task in tasks]


@dataclass(frozen=True)
class Making:
    """Stage that makes erasers on one model. A task is done if its folder has an eraser's manifest."""

    load: Loader

    def open(self) -> Callable[[Task], str]:
        return partial(_make, self.load(), self.load.model is None)

    def path(self, item: Task) -> Path:
        return Path(item.out) / "manifest.json"

    def name(self, item: Task) -> str:
        return Path(item.out).name


def _done(outcome: Outcome[Task]) -> Done:
    task = outcome.item
    named = (task.concept, task.method, task.out)
    if outcome.state == "kept":
        return _existing(task)
    if outcome.state == "made":
        return Done(*named, state="made", seconds=outcome.seconds, bytes=_size(task.out), why=outcome.why)
    state: State = "failed" if outcome.aside else "weak" if outcome.error == "WeakEraserError" else "refused"
    return Done(*named, state=state, seconds=outcome.seconds, why=outcome.why)


def _existing(task: Task) -> Done:
    """Return the outcome of a task whose folder holds an eraser: kept, or refused if it is damaged or another's."""
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


def _make(pipe: Pipeline, bundled: bool, task: Task) -> str:
    """Make a task's eraser, and return in what it is weak. Raises ExciseError if it is refused or too weak."""
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
    return "; ".join(eraser.weak)


def _size(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).iterdir())
