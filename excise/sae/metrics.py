"""Exact reconstruction metrics of an SAE: sums streamed in float64, one ratio at the end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from excise.errors import ExciseError
from excise.sae.losses import idle_tokens
from excise.sae.model import Codes, TopKSAE


class Metrics(NamedTuple):
    """Metrics over all vectors."""

    fvu: float
    """Fraction of variance unexplained: sum ‖x - x̂‖² / sum ‖x - x̄‖², x̄ the mean of all vectors."""
    l0: float
    """Mean number of positive latents for a vector."""
    dead_share: float
    """Share of the latents that fired for none of these vectors."""
    vectors: int
    """Number of vectors: the window of `dead_share`, which means nothing without it."""


def exact(x: Tensor) -> Tensor:
    """Return `x` in float64, on the CPU if its device is MPS, which has none."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


class Meter:
    """Streaming computation of `Metrics`: `update` for each batch, then `result`."""

    def __init__(self, m: int, *, threshold: float = 0.0) -> None:
        """`m` is the number of latents; an activation up to `threshold` does not count as firing."""
        self._threshold = threshold
        self._idle = torch.zeros(m, dtype=torch.int64)
        self._n = 0
        self._active = 0
        self._squared_error = 0.0
        self._squares = 0.0
        self._origin: Tensor | None = None
        self._sum: Tensor | None = None

    def update(self, x: Tensor, reconstruction: Tensor, codes: Codes) -> None:
        """Add a batch: `x` and `reconstruction` [..., d], codes of [..., k]."""
        x = exact(x.reshape(-1, x.shape[-1]))
        if not len(x):
            return
        if self._origin is None or self._sum is None:
            # The variance does not depend on the origin, but its rounding does: use a vector of the data.
            self._origin, self._sum = x[0].clone(), torch.zeros_like(x[0])
        self._squared_error += float((x - exact(reconstruction.reshape(x.shape))).square().sum())
        centred = x - self._origin
        self._squares += float(centred.square().sum())
        self._sum += centred.sum(0)
        self._active += int((codes.values > 0).sum())
        self._n += len(x)
        self._idle = idle_tokens(self._idle.to(codes.values.device), codes, self._threshold)

    def result(self) -> Metrics:
        """Return the metrics. Raises ExciseError without vectors, or if all are the same and FVU is undefined."""
        if self._sum is None:
            raise ExciseError("no vectors to measure the SAE on; give at least two")
        variation = self._squares - float(self._sum.square().sum()) / self._n
        if variation <= 0:
            raise ExciseError("all vectors are the same, so there is no variance to explain; give different ones")
        return Metrics(
            fvu=self._squared_error / variation,
            l0=self._active / self._n,
            dead_share=float((self._idle >= self._n).cpu().double().mean()),
            vectors=self._n,
        )


@torch.no_grad()
def evaluate(sae: TopKSAE, batches: Iterable[Tensor], *, threshold: float = 0.0) -> Metrics:
    """Measure `sae` on batches of vectors [..., d], each moved to its device. Raises as `Meter.result`."""
    meter = Meter(sae.config.m, threshold=threshold)
    for x in batches:
        x = x.to(sae.b_pre)
        meter.update(x, *sae(x))
    return meter.result()
