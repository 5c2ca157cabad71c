"""The order of an SAE's training vectors: any batch is found without reading those before it.

Each epoch reads the shards in another order. Neighbours in that order fill a window, whose vectors are shuffled
together. Where a batch lies follows from the sizes of the shards alone.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

import torch
from torch import Tensor

from excise.errors import ExciseError
from excise.sae.data import Samples, Shard, Source, permuted, seeded
from excise.sae.parallel import ALONE, Mesh

BUFFER = 1 << 17
"""Vectors shuffled together, or one shard's if it has more."""


class _Epoch(NamedTuple):
    """The windows of an epoch."""

    number: int
    windows: list[list[int]]
    """Numbers of each window's shards."""
    starts: list[int]
    """Place of each window's first row in the epoch, and the epoch's end."""


class _Window(NamedTuple):
    """A window that was read."""

    place: tuple[int, int]
    """Its epoch and its number."""
    rows: Shard
    order: Tensor


class Stream:
    """Batches of `size` vectors or samples of a source, float32, endlessly.

    Batch n depends on the vectors, the source's seed, `size` and n alone. An incomplete last batch is left out of its
    epoch; another order leaves out other vectors. One window is held in memory, on a GPU `device` if half of its free
    memory has room for it, so memory does not grow with the number of shards.
    """

    def __init__(self, source: Source, size: int, *, device: torch.device | str = "cpu", mesh: Mesh = ALONE) -> None:
        """`size` must not exceed the number of vectors or samples. All ranks of `mesh` ask for the same batches."""
        self._source, self._size, self._device, self._mesh = source, size, torch.device(device), mesh
        self._epoch: _Epoch | None = None
        self._window: _Window | None = None

    def batch(self, number: int, part: slice = slice(None)) -> Shard:
        """Return a batch, or only `part` of its rows, where ranks divide it."""
        epoch, place = divmod(number, self._source.count // self._size)
        whole = range(place * self._size, (place + 1) * self._size)
        return self._rows(self._planned(epoch), whole, part)

    def _rows(self, epoch: _Epoch, whole: range, part: slice) -> Shard:
        """Return a part of a batch of an epoch, which lies in one window or in neighbouring ones.

        A rank reads all of the batch's windows, also those without rows of its own: the ranks read them together.
        """
        taken: list[Shard] = []
        wanted = whole[part]
        at = bisect_right(epoch.starts, whole.start) - 1
        while at < len(epoch.windows) and epoch.starts[at] < whole.stop:
            begin, end = epoch.starts[at], epoch.starts[at + 1]
            here = range(wanted.start, min(wanted.stop, end), wanted.step)
            window = self._read(epoch, at)
            own = window.order[here.start - begin : here.stop - begin : here.step]
            taken.append(window.rows[own].float())
            wanted, at = wanted[len(here) :], at + 1
        return _joined(taken)

    def _planned(self, epoch: int) -> _Epoch:
        if self._epoch is not None and self._epoch.number == epoch:
            return self._epoch
        source = self._source
        windows: list[list[int]] = []
        starts, rows = [0], 0
        for number in permuted(len(source.sizes), f"{source.seed}/{epoch}/shards"):
            if source.sizes[number]:
                if not rows:
                    windows.append([])
                windows[-1].append(number)
                rows += source.sizes[number]
            if rows * source.each >= BUFFER:
                starts.append(starts[-1] + rows)
                rows = 0
        if rows:
            starts.append(starts[-1] + rows)
        self._epoch = _Epoch(epoch, windows, starts)
        return self._epoch

    def _read(self, epoch: _Epoch, at: int) -> _Window:
        place = epoch.number, at
        if self._window is None or self._window.place != place:
            self._window = None  # free it before the next one is read
            rows = _resident(_joined(self._shards(epoch.windows[at])), self._device)
            order = torch.randperm(len(rows), generator=seeded(f"{self._source.seed}/{epoch.number}/{at}"))
            self._window = _Window(place, rows, order.to(_device(rows)))
        return self._window

    def _shards(self, numbers: list[int]) -> list[Shard]:
        mesh, source = self._mesh, self._source
        if mesh.size == 1 or not source.divided:
            return [source.read(number) for number in numbers]
        own = mesh.together(lambda: {number: source.read(number) for number in numbers[mesh.rank :: mesh.size]})
        return [mesh.sent(_tensor(own.get(number)), n % mesh.size) for n, number in enumerate(numbers)]


def _tensor(shard: Shard | None) -> Tensor | None:
    if isinstance(shard, Samples):
        raise ExciseError("ranks divide the reading of vectors, not of samples")
    return shard


def _resident(shard: Shard, device: torch.device) -> Shard:
    """Move a shard to a GPU that has room for it: one copy instead of one for each batch."""
    if device.type != "cuda" or isinstance(shard, Samples) or shard.device.type == "cuda":
        return shard
    free, _ = torch.cuda.mem_get_info(device)
    return shard.to(device) if 2 * shard.nbytes <= free else shard


def _device(shard: Shard) -> torch.device:
    return shard.device if isinstance(shard, Tensor) else shard.states.device


def _joined(parts: list[Shard]) -> Shard:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    samples = [part for part in parts if isinstance(part, Samples)]
    return Samples(torch.cat([part.states for part in samples]), torch.cat([part.labels for part in samples]))
