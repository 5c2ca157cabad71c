"""States on disk that SAEs are trained on, vector by vector and shard by shard, so that reading goes on where it was
interrupted."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excise.errors import ExciseError
from excise.files import write_atomic
from excise.pipeline import Pipeline
from excise.sites.activations.length_buckets import capture_by_length
from excise.sites.activations.shards import narrowed, read_shard, write_shard
from excise.sites.language import LanguageModel, fingerprint
from excise.sites.site import Site, encoder_of

SCHEMA = "excise.tokens/1"
TEXTS = 512
"""Texts a shard: what is lost at most when reading is interrupted."""


@dataclass(frozen=True)
class TokenShards:
    """What `capture_tokens_to` wrote."""

    folder: Path
    texts: int
    vectors: int
    files: tuple[tuple[str, str], ...]
    """Names of the shards and their digests."""

    def vectors_at(self, site: Site) -> Iterator[Tensor]:
        """Vectors `[n, d]` at a Site, shard by shard. Raises ExciseError where one is missing or altered."""
        for name, digest in self.files:
            with read_shard(self.folder / name, digest) as tensors:
                yield tensors[site.key]


def capture_tokens_to(
    folder: Path,
    pipe: Pipeline,
    sites: Sequence[Site],
    texts: Sequence[str],
    *,
    padding: float = 1.0,
    bos: bool = False,
    anew: bool = False,
    batch_size: int = 32,
    dtype: torch.dtype = torch.float16,
    progress: Callable[[int], Any] | None = None,
) -> TokenShards:
    """Write the states of `texts` at every one of `sites` of one text encoder, in one pass: the words' of a language
    model; words, EOS and padding of any other, or a share of its `padding` as `capture_by_length` draws it, and with
    `bos` the first position's, where no word stands there.

    Called again with the same arguments it goes on where it was interrupted, and a finished folder is read back. With
    `anew` what it wrote in the folder with others is deleted, instead of refused.
    `dtype` is what vectors are kept in; `progress` is called with the texts read since the last call.

    Raises ExciseError for a folder of other features, texts without words, or where the disk refuses.
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
    if not isinstance(pipe, LanguageModel):  # of which only words are ever read
        about["bos"] = bos
    done = _begun(folder, about, anew)
    write_atomic(folder / "manifest.json", json.dumps(done, indent=1) + "\n")
    if progress is not None and done["read"]:
        progress(done["read"])
    while done["read"] < len(texts):
        part = texts[done["read"] : done["read"] + TEXTS]
        rows: dict[Site, list[Tensor]] = {site: [] for site in sites}
        for _, batch in capture_by_length(pipe, sites, part, batch_size, padding=padding, seed=len(done["shards"])):
            for site in sites:
                rows[site].append((batch if bos else batch.without_bos()).vectors(site))
            if progress is not None:
                progress(len(batch.ids))
        # One copy a shard: a GPU goes on reading meanwhile.
        vectors = {site.key: narrowed(torch.cat(own), dtype) for site, own in rows.items()}
        done["shards"].append(write_shard(folder, len(done["shards"]), vectors))
        done["read"] += len(part)
        done["vectors"] += len(vectors[sites[0].key])
        write_atomic(folder / "manifest.json", json.dumps(done, indent=1) + "\n")
    if not done["vectors"]:
        raise ExciseError("there is no word in the texts; check the file")
    return TokenShards(folder, done["read"], done["vectors"], tuple((name, digest) for name, digest in done["shards"]))


def _digest(texts: Sequence[str]) -> str:
    own = hashlib.sha256()
    for text in texts:
        own.update(text.encode() + b"\0")
    return own.hexdigest()


def _begun(folder: Path, about: dict[str, Any], anew: bool) -> dict[str, Any]:
    """The manifest so far. Raises ExciseError where the folder holds something else."""
    nothing = {**about, "read": 0, "vectors": 0, "shards": []}
    if not folder.exists() or not any(folder.iterdir()):
        return nothing
    try:
        found: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        if "bos" in about:
            found.setdefault("bos", True)  # older captures read every position and did not say so
        if {name: found[name] for name in about} == about:
            return found
        if anew and found["schema"] == SCHEMA:
            shutil.rmtree(folder)
            return nothing
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ExciseError(f"{folder} holds something else; choose another folder, or delete it to read anew")
