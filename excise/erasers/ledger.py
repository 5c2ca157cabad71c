"""Ledger: which text states edited encoders have made, so that any others can be told from them.

A state is one position's vector. What a denoiser reads are such vectors, some of them joined along their width (two
encoders', or several layers'), filled up with zeros, or cast to its own dtype; in any order and batch.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

REMEMBERED = 1 << 18
"""Vectors kept of every width, the latest ones."""
DTYPES = torch.float16, torch.bfloat16
"""A pipeline may cast states on their way to the denoiser: they are known in these dtypes too."""
_CHUNK = 4096
_SECRET = secrets.randbits(62)


class Ledger:
    """Hashes of vectors by their width. They are of a secret random function: nobody can aim at them."""

    def __init__(self) -> None:
        self._known: dict[int, OrderedDict[int, None]] = {}

    @property
    def widths(self) -> list[int]:
        """Of the vectors that were added."""
        return sorted(self._known)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Remember every vector (the last dimension) of floating tensors."""
        for tensor in tensors:
            if not tensor.is_floating_point() or tensor.ndim < 2 or tensor.is_meta:
                continue
            known = self._known.setdefault(tensor.shape[-1], OrderedDict())
            rows = tensor.detach().flatten(0, -2)
            for dtype in {tensor.dtype, *DTYPES}:
                known.update(dict.fromkeys(hashes(rows.to(dtype)).tolist()))
            while len(known) > REMEMBERED:
                known.popitem(last=False)

    def knows(self, tensor: Tensor) -> bool:
        """Whether every vector in it is one that was added, several of them joined, or zeros."""
        rows = tensor.detach().flatten(0, -2)
        return sum(len(part) for part, _, _ in self.pieces(rows)) == len(rows)

    def pieces(self, rows: Tensor) -> Iterator[tuple[Tensor, tuple[tuple[int, int], ...], bool]]:
        """Vectors `rows` `[n, D]` by how they are made up: their numbers, the (start, width) of their known parts, and
        whether zeros fill them up. Vectors of unknown make-up are left out."""
        yield from self._parsed(rows, torch.arange(len(rows), device=rows.device), 0, ())

    def forget(self) -> None:
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
