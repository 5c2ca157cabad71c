"""States on disk that SAEs are trained on: a file for each shard, which an engine makes, and a manifest at the end."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from excise.engine import Needs, Outcome, make_all
from excise.errors import ExciseError
from excise.files import TENSORS, begun, parse_json, read_json, sha256, write_atomic
from excise.pipeline import Pipeline
from excise.sites.activations.length_buckets import capture_by_length
from excise.sites.activations.shards import narrowed, read_shard, shape_in_shard, write_shard
from excise.sites.language import LanguageModel, fingerprint
from excise.sites.site import Site, encoder_of

SCHEMA, OLD = "excise.tokens/2", "excise.tokens/1"
ABOUT, MANIFEST = "about.json", "manifest.json"
TEXTS = 512
"""Number of texts per shard, and the most that an interruption loses."""


class Parts(Protocol):
    """A corpus in parts. Each part becomes a shard. Workers of an engine receive it pickled."""

    def sizes(self) -> Sequence[int]:
        """Return the number of texts in each part."""
        ...

    def about(self, pipe: Pipeline) -> dict[str, Any]:
        """Return what the states depend on besides the model and the Sites, as JSON."""
        ...

    def read(
        self, pipe: Pipeline, sites: Sequence[Site], number: int, progress: Callable[[int], Any] | None = None
    ) -> dict[Site, Tensor]:
        """Return the states of a part, `[n, d]` at each Site: a function of the model and the number alone."""
        ...


@dataclass(frozen=True)
class TextParts:
    """Texts, `size` in a part. The states are described in `capture_tokens_to`."""

    texts: tuple[str, ...]
    padding: float = 1.0
    bos: bool = False
    batch_size: int = 32
    size: int = field(default_factory=lambda: TEXTS)

    def sizes(self) -> Sequence[int]:
        return [len(self.texts[begin : begin + self.size]) for begin in range(0, len(self.texts), self.size)]

    def about(self, pipe: Pipeline) -> dict[str, Any]:
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(text.encode() + b"\0")
        about = {"padding": self.padding, "batch_size": self.batch_size, "size": self.size}
        if not isinstance(pipe, LanguageModel):  # it keeps words only
            about["bos"] = self.bos
        return {**about, "texts": len(self.texts), "texts_sha256": digest.hexdigest()}

    def read(
        self, pipe: Pipeline, sites: Sequence[Site], number: int, progress: Callable[[int], Any] | None = None
    ) -> dict[Site, Tensor]:
        part = self.texts[number * self.size : (number + 1) * self.size]
        rows: dict[Site, list[Tensor]] = {site: [] for site in sites}
        for _, batch in capture_by_length(pipe, sites, part, self.batch_size, padding=self.padding, seed=number):
            for site in sites:
                rows[site].append((batch if self.bos else batch.without_bos()).vectors(site))
            if progress is not None:
                progress(len(batch.ids))
        # One copy per shard, so that a GPU does not wait after every batch.
        return {site: torch.cat(parts) for site, parts in rows.items()}


@dataclass(frozen=True)
class TokenShards:
    """The states that a `Capture` wrote."""

    folder: Path
    texts: int
    vectors: int
    files: tuple[tuple[str, str, int], ...]
    """Names of the shards, their digests, and how many vectors each has."""
    checked: set[int] = field(default_factory=set, compare=False, repr=False)
    """Shards whose digest was checked."""

    @property
    def digest(self) -> str:
        """Digest of all shards."""
        return sha256(json.dumps([digest for _, digest, _ in self.files]).encode())

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of vectors in each shard."""
        return tuple(vectors for _, _, vectors in self.files)

    def read(self, number: int, site: Site) -> Tensor:
        """Return a shard's vectors `[n, d]` at a Site. Raise ExciseError if it is missing or altered.

        Its digest is checked when it is read first.
        """
        name, digest, _ = self.files[number]
        with read_shard(self.folder / name, None if number in self.checked else digest) as tensors:
            self.checked.add(number)
            return tensors[site.key]

    def vectors_at(self, site: Site) -> Iterator[Tensor]:
        """Yield vectors `[n, d]` at a Site, shard by shard. Raise ExciseError if one is missing or altered."""
        yield from (self.read(number, site) for number in range(len(self.files)))


@dataclass(frozen=True, eq=False)
class Capture:
    """Stage that writes the states of a corpus at some Sites of one text encoder. A part of it is an item."""

    folder: Path
    sites: tuple[Site, ...]
    parts: Parts
    dtype: torch.dtype = torch.float16
    load: Callable[[], Any] | None = None
    """How a worker loads the model."""
    pipe: Any = None
    """The model, if it is in this process, and how it reports the texts that it has read."""
    progress: Callable[[int], Any] | None = None

    def open(self) -> Callable[[int], str]:
        if self.pipe is None and self.load is None:
            raise ExciseError("a worker cannot load the model; give the capture a loader")
        return partial(self._make, self.pipe if self.load is None or self.pipe is not None else self.load())

    def path(self, item: int) -> Path:
        return self.folder / f"{item:05d}.safetensors"

    def name(self, item: int) -> str:
        return f"shard-{item:05d}"

    def _make(self, pipe: Pipeline, item: int) -> str:
        found = self.parts.read(pipe, self.sites, item, self.progress)
        vectors = {site.key: narrowed(states, self.dtype) for site, states in found.items()}
        # Another slice may have made it just now, with other roundings on other hardware: the first one's stays.
        _, digest = write_shard(self.folder, item, vectors, once=True)
        return json.dumps([digest, len(next(iter(vectors.values())))])

    def begin(self, pipe: Pipeline, *, overwrite: bool = False) -> bool:
        """Prepare the folder, or find it prepared, and return whether all states are there.

        Raises ExciseError if it holds something else. `overwrite` deletes states that were written in another way.
        """
        about = {
            "schema": SCHEMA,
            "sites": [asdict(site) for site in self.sites],
            "model": fingerprint(encoder_of(pipe, self.sites[0].component)),
            "positions": getattr(pipe, "positions", None),
            "dtype": str(self.dtype),
            **self.parts.about(pipe),
        }
        try:
            path, manifest = self.folder / ABOUT, self.folder / MANIFEST
            found = read_json(manifest) if manifest.exists() and not path.exists() else begun(path, about)
            if found == about:
                return manifest.exists()
            known = overwrite and found["schema"] in (SCHEMA, OLD)
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise ExciseError(f"{self.folder} holds something else; choose another folder, or delete it to read again")
        shutil.rmtree(self.folder)
        return self.begin(pipe)

    def make(
        self,
        engine: str | None = "local",
        *,
        workers: int = 1,
        needs: Needs | None = None,
        retry: bool = False,
        share: tuple[int, int] = (0, 1),
        progress: Callable[[int], Any] | None = None,
    ) -> dict[int, tuple[str, int]]:
        """Write the missing shards on an engine. Return digest and vectors of those made in this call.

        Args:
            engine: Where, as in `excise.engine.run`.
            workers: Number of workers.
            needs: What a worker needs.
            retry: Whether to try shards again that failed before.
            share: (i, n): only every n-th shard, from number i.
            progress: Called with the number of texts in each shard that is there, unless the stage itself reports.

        Raises:
            ItemsFailed: A shard failed for a reason that no user can fix.
            ExciseError: The engine cannot be used, or the disk refuses.
        """
        sizes, made = self.parts.sizes(), dict[int, tuple[str, int]]()

        def then(outcome: Outcome[int]) -> None:
            if outcome.state == "made":
                digest, vectors = parse_json(outcome.why)
                made[outcome.item] = str(digest), int(vectors)
            told = outcome.state == "made" and self.progress is not None
            if progress is not None and outcome.state != "failed" and not told:
                progress(sizes[outcome.item])

        numbers = range(share[0], len(sizes), share[1])
        how = {} if needs is None else {"needs": needs}
        make_all(
            engine, self, numbers, failures=self.folder / "failures", then=then, workers=workers, retry=retry, **how
        )
        return made

    def finish(self, made: dict[int, tuple[str, int]]) -> TokenShards:
        """Write the manifest when all shards are there, and return what it lists.

        Digests that `made` does not have are computed. Raises ExciseError if a shard is missing, or no text has words.
        """
        sizes = self.parts.sizes()
        shards = [made.get(number) or self._found(number) for number in range(len(sizes))]
        vectors = sum(count for _, count in shards)
        if not vectors:
            raise ExciseError("there is no word in the texts; check the file")
        manifest = {**read_json(self.folder / ABOUT), "read": sum(sizes), "vectors": vectors}
        manifest["shards"] = [[self.path(number).name, *shard] for number, shard in enumerate(shards)]
        write_atomic(self.folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        return loaded(self.folder)

    def _found(self, number: int) -> tuple[str, int]:
        path = self.path(number)
        vectors = shape_in_shard(path, self.sites[0].key)[0]
        return sha256(path), vectors


def loaded(folder: Path) -> TokenShards:
    """Load what a `Capture` wrote into a folder. Raises ExciseError if it is missing or unfinished."""
    try:
        found = read_json(folder / MANIFEST, TENSORS)
        if found["schema"] != SCHEMA:
            raise ValueError(f"their format is {found['schema']!r}")
        shards = tuple((str(name), str(digest), int(vectors)) for name, digest, vectors in found["shards"])
        return TokenShards(folder, int(found["read"]), int(found["vectors"]), shards)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExciseError(f"cannot read the states in {folder} ({error}); delete it to read again") from error


def capture_tokens_to(
    folder: Path,
    pipe: Pipeline,
    sites: Sequence[Site],
    texts: Sequence[str],
    *,
    padding: float = 1.0,
    bos: bool = False,
    overwrite: bool = False,
    batch_size: int = 32,
    dtype: torch.dtype = torch.float16,
    progress: Callable[[int], Any] | None = None,
) -> TokenShards:
    """Write the states of `texts` at all `sites` of one text encoder, in one pass.

    Of a language model these are the words' states, of any other encoder those of words, EOS and padding. A second call
    with the same arguments continues where the first one was interrupted, or loads a finished folder.

    Args:
        folder: A new folder, or one to continue.
        pipe: The pipeline.
        sites: Sites of one text encoder.
        texts: The texts.
        padding: Share of padding to keep, see `capture_by_length`.
        bos: Whether to keep the first position's state even if it is not a word.
        overwrite: Whether to delete, instead of refuse, states in the folder that were written with other arguments.
        batch_size: Texts per batch.
        dtype: Dtype of the saved vectors.
        progress: Called with the number of texts read since the last call.

    Raises:
        ExciseError: if the folder holds other features or cannot be written, or the texts have no words.
        ItemsFailed: if reading fails for a reason that no user can fix.
    """
    if not texts:
        raise ExciseError("there are no texts to read; check the file")
    parts = TextParts(tuple(texts), padding, bos, batch_size)
    capture = Capture(folder, tuple(sites), parts, dtype, pipe=pipe, progress=progress)
    if capture.begin(pipe, overwrite=overwrite):
        if progress is not None:
            progress(len(texts))
        return loaded(folder)
    return capture.finish(capture.make(retry=True, progress=progress))
