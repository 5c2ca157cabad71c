"""Shards of captured features: safetensors files whose digests a manifest keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from excise.errors import ExciseError
from excise.files import sha256, write_atomic


def narrowed(states: Tensor, dtype: torch.dtype = torch.float16) -> Tensor:
    """`states` on the processor in `dtype`, in which features are kept; as they are where a value is beyond it."""
    narrow = states.to("cpu", dtype)
    return narrow if bool(torch.isfinite(narrow).all()) else states.cpu()


def write_shard(folder: Path, number: int, tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """Write the tensors as the folder's shard of that number: its name and its digest."""
    name, data = f"{number:05d}.safetensors", save(dict(tensors))
    write_atomic(folder / name, data)
    return name, sha256(data)


@contextmanager
def read_shard(path: Path, digest: str) -> Iterator[dict[str, Tensor]]:
    """The tensors of a shard. Raises ExciseError where it is missing, was altered, or lacks one that is looked up."""
    try:
        data = path.read_bytes()
        if sha256(data) != digest:
            raise ExciseError(f"{path} was altered or cut short; capture the features again")
        yield load(data)
    except (OSError, KeyError, SafetensorError) as error:
        raise ExciseError(f"cannot read {path} ({error}); capture the features again") from error
