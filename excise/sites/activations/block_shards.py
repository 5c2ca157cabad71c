"""A denoiser's features and their labels on disk: safetensors shards and a manifest, written batch by batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excise.errors import ExciseError
from excise.files import read_json, write_atomic
from excise.pipeline import Pipeline
from excise.sites.activations.blocks import capture_blocks
from excise.sites.activations.shards import narrowed, read_shard, shape_in_shard, tensor_in_shard, write_shard
from excise.sites.site import Site

SCHEMA = "excise.blocks/1"


@dataclass(frozen=True)
class Labelled:
    """A prompt and the concepts that its image shows."""

    prompt: str
    concepts: tuple[str, ...]


def label_table(prompts: Sequence[Labelled], concepts: Sequence[str]) -> Tensor:
    """Return the labels as `[prompts, concepts]` bool. Raise ExciseError if a label is not among the concepts."""
    known = {name: n for n, name in enumerate(concepts)}
    if unknown := [c for p in prompts for c in p.concepts if c not in known]:
        raise ExciseError(f"{unknown[0]!r} is not among the {len(known)} concepts; add it to them")
    labels = torch.zeros(len(prompts), len(concepts), dtype=torch.bool)
    for n, row in enumerate(prompts):
        labels[n, [known[c] for c in row.concepts]] = True
    return labels


@dataclass(frozen=True, eq=False)
class BlockShard:
    """A batch of images: their patches at every step, and their labels."""

    states: Tensor
    """`[n, S, N, C]` in the saved dtype, or a wider one if a value exceeds its range."""
    labels: Tensor
    """`[n, concepts]` bool."""


@dataclass(frozen=True)
class BlockShards:
    """The features that `capture_blocks_to` wrote."""

    folder: Path
    site: Site
    concepts: tuple[str, ...]
    timesteps: tuple[float, ...]
    pictures: int
    files: tuple[tuple[str, str], ...]
    """Names of the shards and their digests."""

    def __iter__(self) -> Iterator[BlockShard]:
        """Iterate over the shards. Raise ExciseError if one is missing or altered."""
        return map(self.read, range(len(self.files)))

    def read(self, number: int) -> BlockShard:
        """Return a shard. Raise ExciseError if it is missing or altered."""
        name, digest = self.files[number]
        with read_shard(self.folder / name, digest) as tensors:
            return BlockShard(tensors["states"], tensors["labels"].bool())

    @property
    def digest(self) -> str:
        """Digest of all shards."""
        return hashlib.sha256(json.dumps([digest for _, digest in self.files]).encode()).hexdigest()

    def chosen(self, wanted: range) -> BlockShards:
        """Return only these shards."""
        return replace(self, files=tuple(self.files[number] for number in wanted))

    def labels(self, number: int) -> Tensor:
        """Return a shard's labels `[n, concepts]` bool without its patches. Raise ExciseError if it is missing."""
        return tensor_in_shard(self.folder / self.files[number][0], "labels").bool()

    def shape(self, number: int) -> tuple[int, int, int]:
        """Return a shard's images, steps and patches. Raise ExciseError if it is missing."""
        images, steps, patches, _ = shape_in_shard(self.folder / self.files[number][0], "states")
        return images, steps, patches


def capture_blocks_to(
    folder: Path,
    pipe: Pipeline,
    site: Site,
    prompts: Sequence[Labelled],
    concepts: Sequence[str],
    *,
    steps: int = 20,
    seed: int = 0,
    batch_size: int = 32,
    options: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
    made_by: Mapping[str, Any] | None = None,
    progress: Callable[[int], Any] | None = None,
) -> BlockShards:
    """Generate from every prompt, and write the block's patches at every step with the labels.

    There is one shard for each batch. A second call with the same arguments continues where the first one was
    interrupted, or loads a finished folder.

    Args:
        folder: A new folder, or one to continue.
        pipe: The pipeline.
        site: A block of its denoiser.
        prompts: Prompts with labels. The n-th is generated from `seed + n`.
        concepts: All concepts, in the order of the labels' columns.
        steps: Denoising steps.
        seed: Seed of the first prompt.
        batch_size: Prompts per batch.
        options: Further arguments of the pipeline.
        dtype: Dtype of the saved patches.
        made_by: Identity of the model, as json. Features of another one are not continued.
        progress: Called with the number of images since the last call.

    Raises:
        ExciseError: if a label is not among `concepts`, or the folder holds other features or cannot be written.
    """
    if not prompts:
        raise ExciseError("there are no prompts to generate from; check the prompts file")
    labels = label_table(prompts, concepts)
    about: dict[str, Any] = {
        "schema": SCHEMA,
        "site": asdict(site),
        "concepts": list(concepts),
        "steps": steps,
        "seed": seed,
        "batch_size": batch_size,
        "options": dict(options or {}),
        "dtype": str(dtype),
        "made_by": dict(made_by or {}),
        "prompts": len(prompts),
        "prompts_sha256": hashlib.sha256(json.dumps([asdict(p) for p in prompts]).encode()).hexdigest(),
    }
    done = _begun(folder, about)
    first = len(done["shards"]) * batch_size
    texts, numbers = [p.prompt for p in prompts[first:]], range(seed + first, seed + len(prompts))
    parts: list[Tensor] = []
    stream = capture_blocks(pipe, site, texts, seeds=numbers, steps=steps, batch_size=batch_size, options=options)
    for patches in stream:
        parts.append(narrowed(patches.states, dtype))
        done["timesteps"] = [*done["timesteps"][: patches.step], patches.timestep]
        if len(parts) < steps:
            continue
        rows = slice(first + patches.numbers[0], first + patches.numbers[-1] + 1)
        data = {"states": torch.stack(parts, 1).contiguous(), "labels": labels[rows].to(torch.uint8)}
        done["shards"].append(write_shard(folder, len(done["shards"]), data))
        write_atomic(folder / "manifest.json", json.dumps(done, indent=1) + "\n")
        parts.clear()
        if progress is not None:
            progress(len(patches.numbers))
    return load_block_shards(folder)


def load_block_shards(folder: Path) -> BlockShards:
    """Load what `capture_blocks_to` wrote. Raise ExciseError if it is missing or unfinished."""
    try:
        manifest = read_json(folder / "manifest.json")
        if manifest["schema"] != SCHEMA:
            raise ValueError(f"its format is {manifest['schema']!r}")
        missing = -(-manifest["prompts"] // manifest["batch_size"]) - len(manifest["shards"])
        if missing:
            raise ValueError(f"{missing} shards are missing")
        return BlockShards(
            folder,
            Site(**manifest["site"]),
            tuple(manifest["concepts"]),
            tuple(manifest["timesteps"]),
            manifest["prompts"],
            tuple((name, digest) for name, digest in manifest["shards"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExciseError(f"{folder} holds no finished features of a block ({error}); capture them") from error


def _begun(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest so far. Raise ExciseError if the folder holds something else."""
    path = folder / "manifest.json"
    if not folder.exists() or not any(folder.iterdir()):
        return {**about, "timesteps": [], "shards": []}
    try:
        found: dict[str, Any] = read_json(path)
        if {name: found[name] for name in about} == about:
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ExciseError(f"{folder} holds something else; choose another folder, or delete it to capture again")
