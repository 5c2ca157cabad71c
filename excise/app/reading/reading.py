"""How the states that an SAE is trained on are read: kept in memory, stored in shards, or made whenever needed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from excise.app.models.loader import Loader
from excise.app.reading.group_states import TokenParts
from excise.engine import Needs, check_engine, is_first, is_here
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError, InvalidSetting
from excise.pipeline import Pipeline
from excise.sae import Shards
from excise.sae.data import Features
from excise.sae.parallel import ALONE, Mesh
from excise.sae.storage import is_sae
from excise.sites import Site
from excise.sites.activations.token_shards import Capture, Parts, TokenShards, loaded
from excise.sites.site import encoder_of


@dataclass(frozen=True)
class Reading:
    """Where states are read."""

    engine: str | None = None
    """Engine of `excise.engine.run`; by default this process, or `workers` processes."""
    workers: int = 1
    load: Loader | None = None
    """How a worker loads the model."""
    retry: bool = False
    """Whether to read parts again that failed before. This process does in any case if it reads alone."""
    states: Literal["made", "stored"] | None = None
    """Whether states are made each time that a training needs them, or stored; by default what is cheaper."""

    def __post_init__(self) -> None:
        check_engine(self.engine, self.workers)
        if self.states not in (None, "made", "stored"):
            raise InvalidSetting(f"states are made or stored, not {self.states!r}")
        if self.states == "made" and not self.is_here:
            raise InvalidSetting("states that are made when needed are not read by workers; leave out the engine")

    @property
    def may_be_in_memory(self) -> bool:
        """Whether states are kept in memory if they are few."""
        return self.states is None and self.is_here

    def makes(self, pipe: Pipeline, component: str, parts: Parts) -> bool:
        """Return whether states are made when needed.

        By default a GPU makes those of a tokenised corpus: it encodes a prompt with CLIP sooner than a disk reads its
        states. Raises ExciseError if that is asked for without tokens.
        """
        if not isinstance(parts, TokenParts):
            if self.states == "made":
                raise ExciseError("states are made when needed from a tokenised corpus alone: `excise sae corpus`")
            return False
        on_cpu = next(encoder_of(pipe, component).parameters()).device.type == "cpu"
        return self.states == "made" or (self.states is None and self.is_here and not on_cpu)

    def check(self, mesh: Mesh) -> None:
        """Raise ExciseError if both ranks and an engine are to divide the reading."""
        if mesh.size > 1 and not self.is_here:
            raise ExciseError(
                "the processes of --parallel divide the reading already; leave out --engine and --workers"
            )

    @property
    def is_here(self) -> bool:
        """Whether this process reads alone."""
        return is_here(self.engine, self.workers)

    @property
    def is_first(self) -> bool:
        """Whether this process also trains: all do but the second and later slices."""
        return is_first(self.engine, self.workers)


HERE = Reading()


@contextmanager
def stored(
    pipe: Pipeline,
    sites: Sequence[Site],
    parts: Parts,
    folder: Path,
    *,
    reading: Reading = HERE,
    overwrite: bool = False,
    progress: Callable[[int], Any] | None = None,
    mesh: Mesh = ALONE,
) -> Iterator[dict[Site, Features]]:
    """Write the model's own states into shards in `folder`, which is removed after the block has run.

    Raises:
        ItemsFailed: A part failed for a reason that no user can fix.
        ExciseError: The folder holds something else, or the engine cannot be used.
    """
    reading.check(mesh)
    # Ranks report as if all were equally fast.
    report = None if progress is None else lambda read: progress(read * mesh.size)
    capture, how = _capture(pipe, sites, parts, folder, reading, report)
    with unedited():
        shards = _divided(capture, pipe, mesh, overwrite=overwrite, **how)
    yield {site: Shards(shards.sizes, partial(shards.read, site=site), shards.digest) for site in sites}
    mesh.together(lambda: None)  # another rank may still be reading
    if mesh.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)


def help_read(
    pipe: Pipeline,
    sites: Sequence[Site],
    parts: Parts,
    folder: Path,
    *,
    out: Path,
    reading: Reading,
    progress: Callable[[int], Any] | None = None,
) -> None:
    """Write states for a training into `out` by the first slice of an array job, in which this process is another one.

    Raises:
        ExciseError: As `stored`.
    """
    capture, how = _capture(pipe, sites, parts, folder, reading, progress)
    if not is_sae(out) and not capture.begin(pipe):
        with unedited():
            capture.make(**how)
    if is_sae(out):  # the first slice did not need them
        shutil.rmtree(folder, ignore_errors=True)


def _capture(
    pipe: Pipeline,
    sites: Sequence[Site],
    parts: Parts,
    folder: Path,
    reading: Reading,
    progress: Callable[[int], Any] | None,
) -> tuple[Capture, dict[str, Any]]:
    """Return the stage, and the arguments of its `make`."""
    here: dict[str, Any] = {"pipe": pipe, "progress": progress} if reading.is_here else {}
    capture = Capture(folder, tuple(sites), parts, load=reading.load, **here)
    needs = Needs() if reading.load is None else reading.load.needs
    retry = reading.retry or reading.is_here
    how = {"engine": reading.engine, "workers": reading.workers, "needs": needs, "retry": retry}
    return capture, {**how, "progress": progress}


def _divided(capture: Capture, pipe: Pipeline, mesh: Mesh, **how: Any) -> TokenShards:
    """Return the states that ranks capture together, each every n-th shard. `how` is for `Capture.make` of each rank.

    Raises ExciseError on all ranks if one of them fails.
    """
    overwrite, progress = how.pop("overwrite", False), how.get("progress")
    done = mesh.together(lambda: mesh.rank == 0 and capture.begin(pipe, overwrite=overwrite))
    if mesh.any(done):
        if progress is not None and mesh.rank == 0:
            progress(sum(capture.parts.sizes()))
    else:
        made = mesh.together(lambda: capture.make(share=(mesh.rank, mesh.size), **how))
        mesh.together(lambda: capture.finish(made) if mesh.rank == 0 else None)
    return mesh.together(lambda: loaded(capture.folder))
