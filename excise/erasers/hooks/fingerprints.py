"""Fingerprints of vectors: a compact set of 64-bit hashes, and a record of the tensors that a caller still holds."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

Values = NDArray[np.int64]
Flags = NDArray[np.bool_]

_CHUNK, _CHUNK_ELSEWHERE = 1 << 17, 1 << 24
"""Number of values hashed at a time. On a CPU the intermediate integers stay in its cache."""
_SECRET = secrets.randbits(62)


def hashes(rows: Tensor) -> Tensor:
    """Return a random linear function, modulo 2^64, of the bits of float32 vectors `rows` `[n, d]`, as `[n]` int64.

    The function is secret and differs between processes, so that a hash cannot be forged.
    """
    factors = _factors(rows.shape[1], rows.device)
    bits = (part.float().contiguous().view(torch.int32).to(torch.int64) for part in _in_chunks(rows))
    made = [part.mul_(factors).sum(1) for part in bits]
    if len(made) == 1:
        return made[0]
    return torch.cat(made) if made else torch.zeros(0, dtype=torch.int64, device=rows.device)


def _in_chunks(rows: Tensor) -> Iterator[Tensor]:
    step = max(1, (_CHUNK if rows.device.type == "cpu" else _CHUNK_ELSEWHERE) // max(1, rows.shape[1]))
    yield from (rows[start : start + step] for start in range(0, len(rows), step))


@lru_cache(64)
def _factors(width: int, device: torch.device) -> Tensor:
    """Return `[width]` odd numbers. They are the same on every device, and shorter widths get a prefix of them."""
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
        """Return `[n]` bool: which of `values` `[n]` are in the set."""
        found = np.zeros(len(values), dtype=bool)
        for run in self._runs:
            at = np.searchsorted(run, values)
            found |= run[np.minimum(at, len(run) - 1)] == values
        return found

    def add(self, values: Values) -> None:
        """Add `values` `[n]` to the set. Those already in it take no memory."""
        new = np.unique(values)
        new = new[~self.has(new)]
        if not len(new):
            return
        while self._runs and len(self._runs[-1]) <= 2 * len(new):
            # Timsort merges two sorted arrays in one pass.
            new = np.sort(np.concatenate((self._runs.pop(), new)), kind="stable")
        self._runs.append(new)


@dataclass(eq=False)
class Place:
    """Location of a held tensor's values, which it does not keep alive."""

    storage: Any
    """Weak reference to the memory."""
    like: Tensor
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    version: int | None
    """PyTorch's write counter; None if it does not count."""
    hashes: list[tuple[tuple[int, bool], Values]] | None = None
    """Hashes of the values, by the width and kind of vectors, once `KnownVectors` has computed them."""

    @classmethod
    def of(cls, tensor: Tensor) -> Place:
        """Return the location of `tensor`."""
        storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        like = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        version = None if tensor.is_inference() else tensor._version
        return cls(storage, like, int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()), version)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for the same memory read with the same dtype, offset, shape and stride."""
        return self.storage.cdata, self.like.dtype, self.offset, self.shape, self.stride

    @property
    def gone(self) -> bool:
        """Whether the memory is no longer in use."""
        return bool(self.storage.expired())

    def tensor(self) -> Tensor | None:
        """Return the current values, or None if the memory was freed."""
        storage: Any = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        # Reading memory that was resized to zero would allocate it again.
        if storage is None or storage.nbytes() < (last + 1) * self.like.element_size():
            return None
        made: Tensor = torch.empty_like(self.like).set_(storage, self.offset, self.shape, self.stride)
        return made


class Held:
    """Tensors given to a caller, for as long as they or a view of them keep their memory in use."""

    def __init__(self) -> None:
        self._places: dict[tuple[Any, ...], Place] = {}
        self._new: list[Place] = []
        self._stayed: deque[Place] = deque()
        self._prune_at = 256

    def add(self, tensor: Tensor) -> None:
        """Remember `tensor` without keeping it alive."""
        place = Place.of(tensor)
        before = self._places.get(place.key)
        if before is not None and place.version is not None and before.version == place.version:
            return
        self._places[place.key] = place
        self._new.append(place)
        if len(self._places) > self._prune_at:
            self._places = {key: place for key, place in self._places.items() if not place.gone}
            self._prune_at = max(256, 2 * len(self._places))

    def __iter__(self) -> Iterator[Place]:
        """Iterate over those still in use."""
        return (place for place in tuple(self._places.values()) if not place.gone)

    def stayed(self, n: int) -> Iterator[Place]:
        """Yield up to `n` of those that were held at an earlier call and still are. Each is yielded once."""
        while self._stayed and n:
            place = self._stayed.popleft()
            if not place.gone and self._places.get(place.key) is place:
                n -= 1
                yield place
        self._stayed.extend(self._new)
        self._new.clear()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def clear(self) -> None:
        self._places.clear()
        self._new.clear()
        self._stayed.clear()
