"""Shards of captured features: safetensors files whose digests a manifest keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from excise.errors import ExciseError
from excise.files import read_tensors, sha256, write_atomic, write_once


def narrowed(states: Tensor, dtype: torch.dtype = torch.float16) -> Tensor:
    """Return `states` on the CPU in `dtype`, or in their own dtype if a value exceeds its range."""
    narrow = states.to("cpu", dtype)
    return narrow if bool(torch.isfinite(narrow).all()) else states.cpu()


def write_shard(folder: Path, number: int, tensors: Mapping[str, Tensor], *, once: bool = False) -> tuple[str, str]:
    """Write the tensors as the folder's shard of that number. Return its name and digest.

    With `once`, a shard that is there is kept.
    """
    name, data = f"{number:05d}.safetensors", save(dict(tensors))
    if once:
        write_once(folder / name, data)
        return name, sha256(folder / name)
    write_atomic(folder / name, data)
    return name, sha256(data)


def shape_in_shard(path: Path, name: str) -> tuple[int, ...]:
    """Return the shape of a shard's tensor without reading it. Raise ExciseError if it is missing."""
    try:
        with safe_open(path, "pt") as file:
            return tuple(file.get_slice(name).get_shape())
    except (OSError, SafetensorError) as error:
        raise ExciseError(f"cannot read {path} ({error}); capture the features again") from error


def tensor_in_shard(path: Path, name: str) -> Tensor:
    """Return one tensor of a shard without reading the others. Raise ExciseError if it is missing."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor(name)  # type: ignore[no-any-return]
    except (OSError, SafetensorError) as error:
        raise ExciseError(f"cannot read {path} ({error}); capture the features again") from error


@contextmanager
def read_shard(path: Path, digest: str | None) -> Iterator[dict[str, Tensor]]:
    """Read the tensors of a shard. Raise ExciseError if it is missing or altered, or a lookup within fails.

    Without a digest it may have been altered.
    """
    try:
        data = read_tensors(path)
        if digest is not None and sha256(data) != digest:
            raise ExciseError(f"{path} was altered or cut short; capture the features again")
        yield load(data)
    except (OSError, KeyError, SafetensorError) as error:
        raise ExciseError(f"cannot read {path} ({error}); capture the features again") from error
