"""Ledger: which text states edited encoders have made, so that any others can be told from them.

A state is one position's vector. What a denoiser reads are such vectors, some of them joined along their width (two
encoders', or several layers'), filled up with zeros, or cast to its own dtype; in any order and batch.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

REMEMBERED = 1 << 18
"""Vectors kept of every width, the latest ones."""
DTYPES = torch.float16, torch.bfloat16
"""A pipeline may cast states on their way to the denoiser: they are known in these dtypes too."""
WAITING = 1 << 26
"""Bytes of states that are kept at most until somebody asks."""
_CHUNK = 4096
_SECRET = secrets.randbits(62)


class Ledger:
    """Hashes of vectors by their width. They are of a secret random function: nobody can aim at them.

    Hashed is what was added when somebody asks, which is once a picture, and not while a prompt is encoded.
    """

    def __init__(self) -> None:
        self._known: dict[int, OrderedDict[int, None]] = {}
        self._added: list[Tensor] = []
        self._lock = threading.Lock()

    @property
    def widths(self) -> list[int]:
        """Of the vectors that were added."""
        self._hash()
        return sorted(self._known)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Remember every vector (the last dimension) of floating tensors, as they are now."""
        with self._lock:
            for tensor in tensors:
                if tensor.is_floating_point() and tensor.ndim >= 2 and not tensor.is_meta:
                    self._added.append(tensor.detach().clone())
            many = sum(tensor.nbytes for tensor in self._added) > WAITING
        if many:
            self._hash()

    def _hash(self) -> None:
        # Locked to the end: what one thread has taken out another one must not miss.
        with self._lock:
            for tensor in self._added:
                known = self._known.setdefault(tensor.shape[-1], OrderedDict())
                rows = tensor.flatten(0, -2)
                for dtype in {tensor.dtype, *DTYPES}:
                    known.update(dict.fromkeys(hashes(rows.to(dtype)).tolist()))
                while len(known) > REMEMBERED:
                    known.popitem(last=False)
            self._added.clear()

    def knows(self, tensor: Tensor) -> bool:
        """Whether every vector in it is one that was added, several of them joined, or zeros."""
        rows = tensor.detach().flatten(0, -2)
        return sum(len(part) for part, _, _ in self.pieces(rows)) == len(rows)

    def pieces(self, rows: Tensor) -> Iterator[tuple[Tensor, tuple[tuple[int, int], ...], bool]]:
        """Vectors `rows` `[n, D]` by how they are made up: their numbers, the (start, width) of their known parts, and
        whether zeros fill them up. Vectors of unknown make-up are left out."""
        self._hash()
        yield from self._parsed(rows, torch.arange(len(rows), device=rows.device), 0, ())

    def forget(self) -> None:
        with self._lock:
            self._added.clear()
            self._known.clear()

    def _parsed(
        self, rows: Tensor, numbers: Tensor, start: int, parts: tuple[tuple[int, int], ...]
    ) -> Iterator[tuple[Tensor, tuple[tuple[int, int], ...], bool]]:
        if not len(numbers):
            return
        if start == rows.shape[1]:
            yield numbers, parts, False
            return
        for width in sorted(self._known, reverse=True):
            if start + width > rows.shape[1] or not len(numbers):
                continue
            known = self._known[width]
            found = hashes(rows[numbers, start : start + width]).tolist()
            hit = torch.tensor([value in known for value in found], device=rows.device)
            yield from self._parsed(rows, numbers[hit], start + width, (*parts, (start, width)))
            numbers = numbers[~hit]
        zero = (rows[numbers, start:] == 0).all(1)
        if bool(zero.any()):
            yield numbers[zero], parts, True


def hashes(rows: Tensor) -> Tensor:
    """`[n]` int64: a random linear function of the bits of float32 vectors `rows` `[n, d]`, modulo 2^64."""
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
