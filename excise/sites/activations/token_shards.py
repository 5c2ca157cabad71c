"""States on disk that SAEs are trained on, in shards, so that an interrupted capture can continue."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excise.errors import ExciseError
from excise.files import read_json, write_atomic
from excise.pipeline import Pipeline
from excise.sites.activations.length_buckets import capture_by_length
from excise.sites.activations.shards import narrowed, read_shard, shape_in_shard, write_shard
from excise.sites.language import LanguageModel, fingerprint
from excise.sites.site import Site, encoder_of

SCHEMA = "excise.tokens/1"
TEXTS = 512
"""Number of texts per shard, and the most that an interruption loses."""


@dataclass(frozen=True)
class TokenShards:
    """The states that `capture_tokens_to` wrote."""

    folder: Path
    texts: int
    vectors: int
    files: tuple[tuple[str, str], ...]
    """Names of the shards and their digests."""

    @property
    def digest(self) -> str:
        """Digest of all shards."""
        return hashlib.sha256(json.dumps([digest for _, digest in self.files]).encode()).hexdigest()

    def sizes(self, site: Site) -> tuple[int, ...]:
        """Return the number of vectors in each shard. Raise ExciseError if one is missing."""
        return tuple(shape_in_shard(self.folder / name, site.key)[0] for name, _ in self.files)

    def read(self, number: int, site: Site) -> Tensor:
        """Return a shard's vectors `[n, d]` at a Site. Raise ExciseError if it is missing or altered."""
        name, digest = self.files[number]
        with read_shard(self.folder / name, digest) as tensors:
            return tensors[site.key]

    def vectors_at(self, site: Site) -> Iterator[Tensor]:
        """Yield vectors `[n, d]` at a Site, shard by shard. Raise ExciseError if one is missing or altered."""
        yield from (self.read(number, site) for number in range(len(self.files)))


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
    share: tuple[int, int] = (0, 1),
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
        share: (i, n): write only every n-th shard, from number i. `joined` puts the shards of n folders together.

    Raises:
        ExciseError: if the folder holds other features or cannot be written, or the texts have no words.
    """
    if not texts:
        raise ExciseError("there are no texts to read; check the file")
    about: dict[str, Any] = {
        "schema": SCHEMA,
        "sites": [asdict(site) for site in sites],
        "model": fingerprint(encoder_of(pipe, sites[0].component)),
        "positions": getattr(pipe, "positions", None),
        "padding": padding,
        "batch_size": batch_size,
        "dtype": str(dtype),
        "texts": len(texts),
        "texts_sha256": _digest(texts),
    }
    if not isinstance(pipe, LanguageModel):  # it keeps words only
        about["bos"] = bos
    first, of = share
    if of > 1:
        about["share"] = list(share)
    done = _begun(folder, about, overwrite)
    write_atomic(folder / "manifest.json", json.dumps(done, indent=1) + "\n")
    if progress is not None and done["read"]:
        progress(done["read"])
    while (number := first + of * len(done["shards"])) * TEXTS < len(texts):
        part = texts[number * TEXTS : (number + 1) * TEXTS]
        rows: dict[Site, list[Tensor]] = {site: [] for site in sites}
        for _, batch in capture_by_length(pipe, sites, part, batch_size, padding=padding, seed=number):
            for site in sites:
                rows[site].append((batch if bos else batch.without_bos()).vectors(site))
            if progress is not None:
                progress(len(batch.ids))
        # One copy per shard, so that a GPU does not wait after every batch.
        vectors = {site.key: narrowed(torch.cat(parts), dtype) for site, parts in rows.items()}
        done["shards"].append(write_shard(folder, len(done["shards"]), vectors))
        done["read"] += len(part)
        done["vectors"] += len(vectors[sites[0].key])
        write_atomic(folder / "manifest.json", json.dumps(done, indent=1) + "\n")
    if not done["vectors"] and of == 1:
        raise ExciseError("there is no word in the texts; check the file")
    return TokenShards(folder, done["read"], done["vectors"], tuple((name, digest) for name, digest in done["shards"]))


def joined(folder: Path, parts: Sequence[str]) -> TokenShards:
    """Return the states that n calls with `share=(i, n)` wrote into these folders of `folder`, as if it were one call.

    Raises ExciseError if there is no word in the texts, or a folder cannot be read.
    """
    try:
        done = [read_json(folder / part / "manifest.json") for part in parts]
        names = [
            [(f"{part}/{name}", digest) for name, digest in one["shards"]]
            for part, one in zip(parts, done, strict=True)
        ]
        texts, vectors = (sum(one[count] for one in done) for count in ("read", "vectors"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExciseError(f"cannot read the states in {folder} ({error}); delete it to read again") from error
    if not vectors:
        raise ExciseError("there is no word in the texts; check the file")
    return TokenShards(folder, texts, vectors, tuple(one for row in zip_longest(*names) for one in row if one))


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def _begun(folder: Path, about: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """Return the manifest so far. Raise ExciseError if the folder holds something else."""
    nothing = {**about, "read": 0, "vectors": 0, "shards": []}
    if not folder.exists() or not any(folder.iterdir()):
        return nothing
    try:
        found: dict[str, Any] = read_json(folder / "manifest.json")
        if "bos" in about:
            found.setdefault("bos", True)  # older captures kept every position without recording it
        if {name: found[name] for name in about} == about:
            return found
        if overwrite and found["schema"] == SCHEMA:
            shutil.rmtree(folder)
            return nothing
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ExciseError(f"{folder} holds something else; choose another folder, or delete it to read again")
