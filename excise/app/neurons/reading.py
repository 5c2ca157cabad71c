"""Reading of a corpus for a neuron database on an engine: one file a chunk, from which the first process writes it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from excise.app.models.loader import Loader
from excise.app.neurons import corpus
from excise.engine import Outcome, is_first, is_here, make_all
from excise.errors import ExciseError
from excise.files import read_tensors, sha256, write_atomic
from excise.locks import locked
from excise.pipeline import Pipeline
from excise.sae import SAEConfig, TopKSAE
from excise.sites import Site


@dataclass(frozen=True)
class Reader:
    """Where a corpus is read (`excise.engine.run`)."""

    load: Loader = field(default_factory=Loader)
    """How workers load the model."""
    engine: str | None = None
    workers: int = 1
    retry: bool = False
    """Whether to read chunks again that failed before."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes the database. The second and later slices only read."""
        return is_first(self.engine, self.workers)

    def read(
        self,
        pipe: Pipeline,
        sae: TopKSAE,
        stage: Reading,
        prompts: Sequence[str],
        progress: Callable[[int], Any],
    ) -> None:
        """Read every chunk that is not there yet. `progress` is called with the prompts done since its last call.

        Raises:
            ItemsFailed: A chunk cannot be read.
            ExciseError: The engine cannot be used.
        """
        if is_here(self.engine, self.workers):
            stage = replace(stage, loaded=(pipe, sae))
        how: dict[str, Any] = {"needs": self.load.needs, "workers": self.workers, "retry": self.retry}
        done: Callable[[Outcome[Chunk]], object] = lambda outcome: progress(len(outcome.item.prompts))  # noqa: E731
        make_all(self.engine, stage, chunks_of(prompts), failures=stage.failures, then=done, **how)


@dataclass(frozen=True)
class Chunk:
    """Part of a corpus, an item of `Reading`."""

    number: int
    prompts: tuple[str, ...]


def chunks_of(prompts: Sequence[str]) -> list[Chunk]:
    """Return the chunks of a corpus, `corpus.CHUNK` prompts each."""
    starts = range(0, len(prompts), corpus.CHUNK)
    return [Chunk(number, tuple(prompts[start : start + corpus.CHUNK])) for number, start in enumerate(starts)]


@dataclass(frozen=True, eq=False)
class Reading:
    """Stage that reads chunks of a corpus on an SAE's neurons, with the model that each worker loads.

    A chunk is done if its file is there, or `out`, whose maker removes these files.
    """

    load: Loader
    sae: str
    """Folder of the SAE."""
    site: Site
    key: str
    """Text that differs for other prompts and SAEs."""
    out: str
    """Path of the database."""
    batch_size: int = 64
    loaded: tuple[Pipeline, TopKSAE] | None = None
    """The model and the SAE, if they are in this process; they are not pickled."""

    def open(self) -> Callable[[Chunk], None]:
        return partial(self._make, *(self.loaded or self.load.with_sae(self.sae, self.site.component)))

    @property
    def folder(self) -> Path:
        """The folder of the chunks' files."""
        out = Path(self.out)
        return out.with_name(f".{out.name}.chunks")

    @property
    def failures(self) -> Path:
        """The folder of chunks that cannot be read."""
        out = Path(self.out)
        return out.with_name(f"{out.name}.failures")

    def file(self, number: int) -> Path:
        """Return the file of a chunk."""
        key = sha256(f"{self.key} {self.site.key} {corpus.CHUNK} {self.batch_size}".encode())[:16]
        return self.folder / f"{key}-{number:05d}.safetensors"

    def path(self, item: Chunk) -> Path:
        return out if (out := Path(self.out)).exists() else self.file(item.number)

    def name(self, item: Chunk) -> str:
        return f"chunk-{item.number:05d}"

    def combined(self, pipe: Pipeline, config: SAEConfig, prompts: Sequence[str]) -> corpus.Corpus:
        """Return the corpus of all chunks, which must be done. Raises ExciseError if one cannot be read."""
        try:
            files = [self.file(chunk.number) for chunk in chunks_of(prompts)]
            read = [safetensors.torch.load(read_tensors(file)) for file in files]
        except (OSError, SafetensorError) as error:
            raise ExciseError(f"cannot read {self.folder} ({error}); delete it and repeat the command") from error
        return corpus.combined(pipe, config, self.site, read)

    def writing(self) -> AbstractContextManager[bool]:
        """Return a context for writing the database. It gives False if another process writes it now."""
        return locked(self.folder / "lock")

    def remove(self) -> None:
        """Remove the chunks' files, also those of earlier corpora, and the folder of failures if it is empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.failures.rmdir()

    def _make(self, pipe: Pipeline, sae: TopKSAE, item: Chunk) -> None:
        chunk = corpus.read_chunk(pipe, sae, self.site, item.prompts, self.batch_size)
        write_atomic(self.file(item.number), safetensors.torch.save(chunk))
