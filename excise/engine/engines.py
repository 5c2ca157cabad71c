"""Engines by name: `local`, `processes`, `slice`, `ray`, and those of plugins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from excise.engine.actors import Actors
from excise.engine.executors import Executors
from excise.engine.local import Local
from excise.engine.processes import Processes
from excise.engine.slices import Slice
from excise.engine.stage import Item, Needs, Pool, Stage
from excise.errors import InvalidSetting
from excise.plugins import plugins

BUILT_IN = ("local", "processes", "slice", "ray")


@dataclass(frozen=True)
class Chosen:
    """An engine with what its name says: `processes:4` has 4 workers, `ray://head:10001` an address."""

    kind: str
    workers: int
    address: str = ""
    part: Slice | None = None

    def pool(self, stage: Stage[Any], needs: Needs, items: int) -> Pool:
        """Return the engine's pool for this many items."""
        workers = max(1, min(self.workers, items))
        if self.kind == "local":
            return Local(stage)
        if self.kind in ("processes", "slice"):
            return Processes(stage, needs, workers)
        if self.kind == "ray":
            return Actors(stage, needs, workers, self.address)
        return Executors(
            stage, needs, workers, partial(plugins("excise.engines")[self.kind], self.address, workers, needs)
        )


def chosen(engine: str | None, workers: int = 1) -> Chosen:
    """Return an engine by name. None stands for `local` with one worker, and for `processes` with several.

    Raises InvalidSetting for an unknown name, an impossible number, or a slice whose number cannot be known, and
    ExciseError for a plugin that cannot be used.
    """
    if workers < 1:
        raise InvalidSetting(f"{workers} workers cannot work; give 1 or more")
    if engine is None:
        return Chosen("local" if workers == 1 else "processes", workers)
    kind, _, rest = engine.partition(":")
    if kind == "local" and not rest:
        if workers > 1:
            raise InvalidSetting(f"the engine local has one worker, not {workers}; name processes:{workers}")
        return Chosen("local", 1)
    if kind == "processes":
        return Chosen(kind, _number(rest, workers, engine))
    if kind == "slice":
        return Chosen(kind, workers, part=Slice.parse(rest))
    if kind == "ray":
        if rest and not rest.startswith("//"):
            raise InvalidSetting(f"the engine {engine!r} has no address; write ray, or ray://HOST:PORT")
        return Chosen(kind, workers, rest and engine)
    others = plugins("excise.engines")
    if kind in others:
        others[kind]  # its error comes before any work
        return Chosen(kind, workers, rest)
    known = ", ".join((*BUILT_IN, *sorted(others)))
    raise InvalidSetting(f"there is no engine {engine!r}; choose from {known}")


def check_engine(engine: str | None, workers: int = 1) -> None:
    """Raise ExciseError as `run` does for an engine that cannot be used."""
    chosen(engine, workers)


def is_here(engine: str | None, workers: int = 1) -> bool:
    """Return whether items are made in this process, with what it has loaded."""
    return chosen(engine, workers).kind == "local"


def is_on_ray(engine: str | None) -> bool:
    """Return whether a Ray cluster makes the items."""
    return chosen(engine).kind == "ray"


def is_first(engine: str | None, workers: int = 1) -> bool:
    """Return whether this process ends the work: all do but the second and later slices."""
    part = chosen(engine, workers).part
    return part is None or part.index == 0


def own_items(engine: str | None, items: Sequence[Item], workers: int = 1) -> Sequence[Item]:
    """Return the items that this call is the first to make: all, or of a slice those that it does not help with."""
    part = chosen(engine, workers).part
    return items if part is None else part.divided(items)[0]


def _number(text: str, workers: int, engine: str) -> int:
    """Return the N of `processes:N`, or `workers` without one."""
    if not text:
        return workers
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise InvalidSetting(f"the engine {engine!r} has no number of workers; write processes:N, such as processes:4")
    if workers not in (1, int(text)):
        raise InvalidSetting(f"{engine} and {workers} workers disagree; give one of them")
    return int(text)
