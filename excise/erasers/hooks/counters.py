"""Counters of what an edit did, summed on the device that computes them and read only on request."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from excise.erasers.edits.base import widest

_THREADS = 64
"""Most threads and devices with sums of their own. Reading them all makes room for further ones."""


class Counters:
    """Rows edited, and the sum of the L2 norms of what was subtracted from them.

    Adding never waits for a device. Every thread has sums of its own, since threads may use different streams.
    """

    def __init__(self) -> None:
        self._rows, self._norm = 0, 0.0
        self._sums: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        self._lock = threading.Lock()

    def add(self, rows: int, norms: Tensor | None = None) -> None:
        """Add a number of rows, and norms of any shape."""
        with self._lock:
            self._rows += rows
        if norms is not None:
            self._add(norms.new_zeros((), dtype=torch.int64), norms)

    def add_delta(self, delta: Tensor) -> None:
        """Add the rows of `delta` `[..., d]` that are not zero, and their norms."""
        norms = delta.detach().float().norm(dim=-1)
        self._add((norms > 0).sum(), norms)

    def _add(self, rows: Tensor, norms: Tensor) -> None:
        norm = norms.detach().sum(dtype=widest(norms.device))
        key = threading.get_ident(), norms.device
        with self._lock:
            if key not in self._sums and len(self._sums) >= _THREADS:
                self._read()
            before = self._sums.get(key)
            # New tensors: sums that were made in inference mode could not be written to outside of it.
            self._sums[key] = (rows, norm) if before is None else (before[0] + rows, before[1] + norm)

    def total(self) -> tuple[int, float]:
        """Return the number of rows and the sum of norms. This waits for the devices."""
        with self._lock:
            self._read()
            return self._rows, self._norm

    def _read(self) -> None:
        if torch.cuda.is_available() and any(device.type == "cuda" for _, device in self._sums):
            torch.cuda.synchronize()  # other threads' streams too
        for rows, norm in self._sums.values():
            self._rows += int(rows)
            self._norm += float(norm)
        self._sums.clear()
