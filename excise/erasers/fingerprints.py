"""Fingerprints of vectors: 64-bit hashes, kept compactly, and the tensors that a caller still holds."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

Values = NDArray[np.int64]
Flags = NDArray[np.bool_]

_CHUNK = 4096
_SECRET = secrets.randbits(62)


def hashes(rows: Tensor) -> Tensor:
    """`[n]` int64: a random linear function of the bits of float32 vectors `rows` `[n, d]`, modulo 2^64.

    The function is secret and differs from process to process, so nobody can aim at a hash.
    """
    factors = _factors(rows.shape[1], rows.device)
    bits = (part.float().contiguous().view(torch.int32).to(torch.int64) for part in _in_chunks(rows))
    made = [(part * factors).sum(1) for part in bits]
    return torch.cat(made) if made else torch.zeros(0, dtype=torch.int64, device=rows.device)


def _in_chunks(rows: Tensor) -> Iterator[Tensor]:
    yield from (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))


@lru_cache(64)
def _factors(width: int, device: torch.device) -> Tensor:
    """`[width]` odd numbers, the same on every device and for every width up to the shorter one."""
    generator = torch.Generator().manual_seed(_SECRET)
    made = torch.randint(-(1 << 62), 1 << 62, (width,), generator=generator, dtype=torch.int64)
    return (made | 1).to(device)


class Fingerprints:
    """A set of hashes, 8 bytes each: a few sorted arrays, each at least twice as long as the next."""

    def __init__(self) -> None:
        self._runs: list[Values] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def has(self, values: Values) -> Flags:
        """`[n]`: which of `values` `[n]` are in the set."""
        found = np.zeros(len(values), dtype=bool)
        for run in self._runs:
            at = np.searchsorted(run, values)
            found |= run[np.minimum(at, len(run) - 1)] == values
        return found

    def add(self, values: Values) -> None:
        """Put `values` `[n]` into the set; those that are in it already cost nothing."""
        new = np.unique(values)
        new = new[~self.has(new)]
        if not len(new):
            return
        while self._runs and len(self._runs[-1]) <= 2 * len(new):
            # Timsort: joining two sorted arrays takes one pass over them.
            new = np.sort(np.concatenate((self._runs.pop(), new)), kind="stable")
        self._runs.append(new)


class Held:
    """Tensors that a caller was given, for as long as their memory is in use: by themselves or by a view of them."""

    def __init__(self) -> None:
        self._parts: list[tuple[Any, Tensor, int, tuple[int, ...], tuple[int, ...]]] = []
        self._prune_at = 256

    def add(self, tensor: Tensor) -> None:
        """Remember `tensor` without keeping it alive."""
        place = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        like = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        self._parts.append((place, like, int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride())))
        if len(self._parts) > self._prune_at:
            self._parts = [part for part in self._parts if not part[0].expired()]
            self._prune_at = max(256, 2 * len(self._parts))

    def __iter__(self) -> Iterator[Tensor]:
        """Those that are still in use, with the values that they have now."""
        for place, like, offset, shape, stride in tuple(self._parts):
            storage: Any = torch.UntypedStorage._new_with_weak_ptr(place.cdata)
            if storage is not None:
                yield torch.empty_like(like).set_(storage, offset, shape, stride)

    def __len__(self) -> int:
        return sum(not part[0].expired() for part in self._parts)

    def clear(self) -> None:
        self._parts.clear()
