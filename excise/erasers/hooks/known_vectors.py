"""KnownVectors: the text states that edited encoders have made, to recognise all others.

A state is one position's vector. A denoiser reads such vectors in any order and batch. They may be concatenated along
their width (two encoders', or several layers'), padded with zeros, or cast to another dtype.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from excise.erasers.hooks.fingerprints import Fingerprints, Flags, Held, Place, Values, hashes

REMEMBERED = 1 << 28
"""Maximal bytes of hashes (8 a vector and dtype), not counting those of embeddings that a caller holds.
It is enough for 70,000 prompts of Stable Diffusion, or 3,000 of a language model whose pipeline reads three layers of
512 positions."""
DTYPES = torch.float16, torch.bfloat16
"""Dtypes that a pipeline may cast states to on their way to the denoiser. States are known in these too."""
WAITING = 1 << 26
"""Maximal bytes of states kept unhashed until the next lookup."""
READ_AT_ONCE = 8
"""Number of held embeddings read with every image, so that a change of generations need not read them all."""
UNKNOWN, OWN, SPARED = 0, 1, 2
"""Kinds of a row: it contains an unknown vector, only prompts' states, or also spared states."""

Parts = tuple[tuple[int, int], ...]
"""The (start, width) of each vector that a row is concatenated from."""
Hashed = list[tuple[tuple[int, bool], Values]]
"""Hashes by the width of the vectors and whether they were spared."""


class KnownVectors:
    """Hashes of vectors by width, with those of spared prompts kept apart.

    Vectors are hashed at the first lookup (once an image), not while a prompt is encoded. There are two generations of
    hashes: when the young one is full, it replaces the old one. A vector becomes young again if it is added or looked
    up again, or belongs to an embedding that is still held (`hold`). So a vector is forgotten only after a whole
    generation without any of these. `share` scales the memory limits.
    """

    def __init__(self, share: float = 1.0) -> None:
        self._share = share
        self._young: dict[tuple[int, bool], Fingerprints] = {}
        self._old: dict[tuple[int, bool], Fingerprints] = {}
        self._carried = self.generation = 0
        """`generation` counts the changes of generations."""
        self._added: list[tuple[Tensor, bool]] = []
        self._waiting = 0
        """Bytes of `_added`."""
        self._held = Held()
        self._lock = threading.RLock()

    @property
    def widths(self) -> list[int]:
        """Widths of the vectors that were added."""
        self._hash()
        with self._lock:
            return sorted({width for width, _ in (*self._young, *self._old)})

    @property
    def nbytes(self) -> int:
        """Bytes of hashes in memory."""
        with self._lock:
            return 8 * sum(map(len, (*self._young.values(), *self._old.values())))

    def add(self, tensors: Iterable[Tensor], *, spared: bool = False) -> None:
        """Remember the current value of every vector (the last dimension) of the floating-point tensors."""
        with self._lock:
            for tensor in tensors:
                if _holds_states(tensor):
                    self._added.append((tensor.detach().clone(), spared))
                    self._waiting += tensor.nbytes
            many = self._waiting > WAITING * self._share
        if many:
            self._hash()

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Keep the known vectors of these tensors while their memory is in use."""
        with self._lock:
            for tensor in tensors:
                if _holds_states(tensor):
                    self._held.add(tensor)

    def knows(self, tensor: Tensor) -> bool:
        """Whether it consists of vectors that were added and not spared, concatenated or padded with zeros."""
        return bool((self.marks(tensor) == OWN).all())

    def marks(self, tensor: Tensor) -> Tensor:
        """Return UNKNOWN, OWN or SPARED for each vector of `[..., D]`, as `[...]` int8."""
        rows = tensor.detach().flatten(0, -2)
        self._hash()
        marks = torch.full((len(rows),), UNKNOWN, dtype=torch.int8, device=rows.device)
        for numbers, _, _, spared in self._parsed(rows):
            marks[numbers] = SPARED if spared else OWN
        return marks.view(tensor.shape[:-1])

    def pieces(self, rows: Tensor) -> Iterator[tuple[Tensor, Parts, bool]]:
        """Group `rows` `[n, D]` by the known vectors they are concatenated from.

        Yields:
            The row numbers of a group, the (start, width) of its parts, and whether zeros pad it. Rows with unknown
            parts are left out.
        """
        self._hash()
        for numbers, parts, filled, _ in self._parsed(rows):
            yield numbers, parts, filled

    def forget(self) -> None:
        """Forget all vectors and held tensors."""
        with self._lock:
            self._added.clear()
            self._waiting = 0
            self._young, self._old, self._carried = {}, {}, 0
            self._held.clear()

    def _hash(self) -> None:
        # Locked to the end, so that no other thread misses vectors that are being hashed.
        with self._lock:
            if not self._added:
                return
            if 8 * (sum(map(len, self._young.values())) - self._carried) > REMEMBERED * self._share // 2:
                self._grow_old()
            alike: dict[tuple[int, bool, torch.dtype, torch.device], list[Tensor]] = {}
            for tensor, spared in self._added:
                kind = tensor.shape[-1], spared, tensor.dtype, tensor.device
                alike.setdefault(kind, []).append(tensor.flatten(0, -2))
            for (width, is_spared, _, _), several in alike.items():
                self._keep([((width, is_spared), values) for values in _in_dtypes(torch.cat(several))])
            self._added.clear()
            self._waiting = 0
            for place in self._held.stayed(READ_AT_ONCE):
                self._read(place)

    def _grow_old(self) -> None:
        self._old, self._young = self._young, {}
        self.generation += 1
        self._keep([part for place in self._held for part in self._read(place)])
        self._carried = sum(map(len, self._young.values()))

    def _read(self, place: Place) -> Hashed:
        """Return the hashes of a held tensor's known vectors. They are cached once all of its vectors are known."""
        if place.hashes is not None:
            return place.hashes
        if (tensor := place.tensor()) is None:
            return []
        found: Hashed = []
        rows, seen = tensor.flatten(0, -2), 0
        for numbers, parts, _, _ in self._parsed(rows):
            seen += len(numbers)
            for start, width in parts:
                vectors = rows[numbers, start : start + width]
                spared = ~self._has((width, False), _values(vectors))
                for kind in (False, True):
                    chosen = vectors[torch.from_numpy(spared == kind).to(vectors.device)]
                    found += [((width, kind), values) for values in _in_dtypes(chosen)]
        if seen == len(rows):
            place.hashes = found
        return found

    def _keep(self, found: Hashed) -> None:
        by_kind: dict[tuple[int, bool], list[Values]] = {}
        for kind, values in found:
            by_kind.setdefault(kind, []).append(values)
        for kind, several in by_kind.items():
            self._young.setdefault(kind, Fingerprints()).add(np.concatenate(several))

    def _has(self, kind: tuple[int, bool], values: Values) -> Flags:
        """Return which of these hashes are known. Move those found in the old generation to the young one."""
        with self._lock:
            young, old = self._young.get(kind), self._old.get(kind)
            found = young.has(values) if young is not None else np.zeros(len(values), dtype=bool)
            if old is not None and not found.all():
                again = ~found & old.has(values)
                if again.any():
                    self._young.setdefault(kind, Fingerprints()).add(values[again])
                    found |= again
            return found

    def _parsed(self, rows: Tensor) -> Iterator[tuple[Tensor, Parts, bool, bool]]:
        """Group rows as `pieces` does, and add whether a spared vector is among the parts."""
        with self._lock:
            widths = sorted({width for width, _ in (*self._young, *self._old)}, reverse=True)
        yield from self._split(rows, widths, torch.arange(len(rows), device=rows.device), 0, (), False)

    def _split(
        self, rows: Tensor, widths: list[int], numbers: Tensor, start: int, parts: Parts, spared: bool
    ) -> Iterator[tuple[Tensor, Parts, bool, bool]]:
        if not len(numbers):
            return
        if start == rows.shape[1]:
            yield numbers, parts, False, spared
            return
        for width in widths:
            if start + width > rows.shape[1] or not len(numbers):
                continue
            values = _values(rows[numbers, start : start + width])
            found, onward = (*parts, (start, width)), start + width
            prompts = self._has((width, False), values)
            if prompts.all():
                yield from self._split(rows, widths, numbers, onward, found, spared)
                return
            others = ~prompts & self._has((width, True), values)
            for hit, is_spared in ((prompts, spared), (others, True)):
                at = torch.from_numpy(hit).to(rows.device)
                yield from self._split(rows, widths, numbers[at], onward, found, is_spared)
            numbers = numbers[torch.from_numpy(~(prompts | others)).to(rows.device)]
        if not len(numbers):
            return
        zero = (rows[numbers, start:] == 0).all(1)
        if bool(zero.any()):
            yield numbers[zero], parts, True, spared


def _values(rows: Tensor) -> Values:
    made: Values = hashes(rows).cpu().numpy()
    return made


def _in_dtypes(rows: Tensor) -> list[Values]:
    """Return the hashes of `rows` `[n, D]` in their own dtype and after a cast to each of `DTYPES`."""
    return [_values(rows.to(dtype)) for dtype in {rows.dtype, *DTYPES}] if len(rows) else []


def _holds_states(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim >= 2 and not tensor.is_meta
