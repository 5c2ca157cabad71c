"""Grid sweep of SAEs over layer, width and k. All are trained on one pass over the prompts, then compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from excise.app.models.loader import Loader
from excise.app.reading.vectors import vectors
from excise.app.training.comparing import Comparing, compare
from excise.app.training.text import train_on
from excise.concepts import Concept
from excise.engine import Outcome, is_here, make_all, own_items
from excise.errors import ExciseError
from excise.files import put_folder, read_tensors, sha256, temporary_beside, write_atomic
from excise.locks import locked
from excise.outputs import check_untrained
from excise.pipeline import Pipeline
from excise.sae import Progress, TrainConfig, card, load
from excise.sae.data import Features
from excise.sites import Site


@dataclass(frozen=True)
class Cell:
    """One SAE of a grid."""

    site: Site
    expansion: int
    k: int

    @property
    def name(self) -> str:
        """Name of its folder, such as `encoder.layers.5-x8-k8`."""
        return f"{self.site.path}-x{self.expansion}-k{self.k}"


def grid(sites: Sequence[Site], expansions: Sequence[int], ks: Sequence[int]) -> list[Cell]:
    """Return every combination. Raises ExciseError if there is none, one appears twice, or k exceeds a width."""
    cells = [Cell(*combination) for combination in product(sites, expansions, ks)]
    if not cells:
        raise ExciseError("a sweep needs at least one site, one expansion and one k")
    if len(set(cells)) < len(cells):
        raise ExciseError("a sweep's sites, expansions and ks must be distinct")
    if len({site.component for site in sites}) > 1:
        raise ExciseError("a sweep reads one text encoder; run a separate sweep for each")
    for cell in cells:
        if not 1 <= cell.k <= cell.expansion * cell.site.width:
            raise ExciseError(f"k = {cell.k} does not fit {cell.expansion * cell.site.width} latents ({cell.name})")
    return cells


def sweep(
    pipe: Pipeline,
    cells: Sequence[Cell],
    prompts: Sequence[str],
    concepts: Sequence[Concept],
    config: TrainConfig,
    out: Path,
    *,
    card_of: Mapping[str, Any],
    comparing: Comparing | None = None,
    captured: Callable[[int], Any] | None = None,
    trained: Callable[[Cell, Progress | None], Any] | None = None,
    device: str = "cpu",
    loader: Loader | None = None,
    engine: str | None = None,
    workers: int = 1,
    retry: bool = False,
) -> list[dict[str, Any]]:
    """Train the missing SAEs into folders of `out` and compare all. Return the rows of `compare`.

    Return no rows in a slice other than the first, if another slice failed at an SAE.

    SAEs finished by an earlier call are kept, and unfinished trainings are resumed.

    Args:
        pipe: The pipeline.
        cells: The SAEs.
        prompts: Prompts to train on.
        concepts: Concepts to compare on.
        config: Settings of each training, except expansion and k.
        out: Folder of the SAEs' folders.
        card_of: Entries for each SAE's card.
        comparing: Settings of the comparison.
        captured: Called with the prompts read since its last call.
        trained: Called with a cell and its progress, which is None once the SAE is done. Only trainings in this process
            report progress before that.
        device: Device to train on.
        loader: How the workers of an engine load the model of `pipe`.
        engine: Where to train (`excise.engine.run`); by default in this process, or in `workers` processes.
        workers: Number of workers.
        retry: Whether to train SAEs again whose training failed before.

    Raises:
        ExciseError: A folder holds an SAE trained with other settings, or the engine cannot be used.
        ItemsFailed: A training failed for a reason that no user can fix.
    """
    here = is_here(engine, workers)
    load_model = loader or Loader()
    left = [cell for cell in cells if not _is_trained(out / cell.name, cell, config)]
    own = frozenset(cell.name for cell in own_items(engine, cells, workers))
    stage = Training(load_model, out, tuple(prompts), config, dict(card_of), device, {}, own)

    def done(outcome: Outcome[Cell]) -> None:
        if trained is not None and outcome.item in left and outcome.state != "failed":
            trained(outcome.item, None)

    with ExitStack() as stack:
        if left:
            # Workers read the features from files. A call that goes on with a sweep finds them by all of its Sites.
            sites = list(dict.fromkeys(cell.site for cell in (left if here else cells)))
            folder = out / ".features"
            if not here:
                folder = stack.enter_context(_features_folder(out, sites, prompts))
            read = stack.enter_context(vectors(pipe, sites, prompts, folder, captured))
            found = read if here else stack.enter_context(_saved(read, folder))
            stage = replace(stage, features=found, pipe=pipe if here else None, report=trained if here else None)
        how: dict[str, Any] = {"workers": workers, "needs": load_model.needs, "retry": retry}
        if not make_all(engine, stage, cells, failures=out / "failures", then=done, **how):
            return []
    return compare(pipe, [out / cell.name for cell in cells], concepts, comparing)


@dataclass(frozen=True, eq=False)
class Training:
    """Stage that trains the SAEs of a grid. A cell is done if its folder has a configuration."""

    load: Loader
    out: Path
    prompts: tuple[str, ...]
    config: TrainConfig
    card: Mapping[str, Any]
    device: str
    features: Mapping[Site, Features | Path]
    """Features at each Site, or the file with them."""
    own: frozenset[str]
    """Names of the SAEs that are trained here first, and go on from their checkpoints."""
    pipe: Pipeline | None = None
    report: Callable[[Cell, Progress], Any] | None = None
    """Called with the lines of a training's log. Both are for trainings in this process alone."""

    def open(self) -> Callable[[Cell], None]:
        return partial(self._make, self.load() if self.pipe is None else self.pipe)

    def path(self, item: Cell) -> Path:
        return self.out / item.name / "cfg.json"

    def name(self, item: Cell) -> str:
        return item.name

    def _make(self, pipe: Pipeline, item: Cell) -> None:
        found = self.features[item.site]
        features = load_tensors(read_tensors(found))["features"] if isinstance(found, Path) else found
        settings = replace(self.config, expansion=item.expansion, k=item.k)

        def report(line: Progress) -> None:
            if self.report is not None:
                self.report(item, line)

        folder = self.out / item.name
        with _working_in(folder, item.name in self.own) as work:
            if not self.path(item).exists():
                train_on(
                    pipe, item.site, self.prompts, features, settings, work, card=self.card, progress=report,
                    device=self.device,
                )  # fmt: skip


@contextmanager
def _working_in(folder: Path, own: bool) -> Iterator[Path]:
    """Yield the folder to train into: `folder`, or one of this process's own that is renamed to it afterwards.

    The second where a process helps with another's SAE, or another process is at the same SAE now: two processes that
    shared the checkpoint would read each other's.
    """
    with ExitStack() as stack:
        shared = folder.with_name(f"{folder.name}.training")
        if own and stack.enter_context(locked(shared / "lock")):
            yield folder
            return
        temporary = temporary_beside(folder)
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        yield (work := temporary / "sae")
        if not (folder / "cfg.json").exists():
            put_folder(work, folder)
        if shared.exists() and stack.enter_context(locked(shared / "lock")):  # its process is lost
            shutil.rmtree(shared, ignore_errors=True)


@contextmanager
def _saved(read: Mapping[Site, Features], folder: Path) -> Iterator[dict[Site, Features | Path]]:
    """Write features that are in memory to files, bit for bit. Those in shards are read from there by every worker.

    The files are removed, also after an error: they are soon read again. Shards, which may take hours, `vectors` keeps
    after an error.
    """
    found: dict[Site, Features | Path] = dict(read)
    with ExitStack() as stack:
        for number, (site, features) in enumerate(read.items()):
            if isinstance(features, Tensor):
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                found[site] = path = folder / f"{number}.safetensors"
                write_atomic(path, save_tensors({"features": features}))
        yield found


@contextmanager
def _features_folder(out: Path, sites: Sequence[Site], prompts: Sequence[str]) -> Iterator[Path]:
    """Yield the folder of these features, so that a reading that was interrupted goes on there.

    Another process may be at it now: then one of this process's own, which is removed.
    """
    named = sha256(json.dumps([*(site.key for site in sites), *prompts]).encode())[:16]
    folder = out / f".features-{named}"
    lock = folder.with_name(f"{folder.name}.lock")
    with locked(lock) as alone:
        temporary = temporary_beside(out / "features")
        try:
            yield folder if alone else temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if alone:
                lock.unlink(missing_ok=True)


def _is_trained(folder: Path, cell: Cell, config: TrainConfig) -> bool:
    """Return whether the cell's SAE is finished. Raises ExciseError if its folder holds another SAE."""
    if not (folder / "cfg.json").exists():
        try:
            check_untrained(folder)
            return False
        except ExciseError:
            if not (folder / "cfg.json").exists():  # else another process has finished it just now
                raise
    load(folder)
    about = card(folder)
    # Cards without this entry are older than the option: those SAEs were trained on BOS.
    if about.get("bos", True):
        raise ExciseError(f"{folder} holds an SAE that was trained on BOS too; choose another --out")
    recipe = about.get("recipe") or {}
    wanted = replace(config, expansion=cell.expansion, k=cell.k).to_json()
    if odd := sorted(name for name, value in wanted.items() if name in recipe and recipe[name] != value):
        raise ExciseError(f"{folder} holds an SAE trained with another {odd[0]}; choose another --out")
    return True
