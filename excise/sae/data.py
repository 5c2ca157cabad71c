"""The vectors an SAE trains on, in memory or shard by shard: statistics, and batches in a settled order."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from excise.errors import ExciseError

Features = Tensor | Callable[[], Iterable[Tensor]]
"""Vectors [N, d], or a function that gives the same shards [n, d] in the same order whenever it is called."""

SAMPLE = 32_768
"""Vectors the geometric median is taken of (OpenAI's number)."""
_CHUNK = 1 << 24
"""Numbers turned to float64 at a time (128 MiB)."""


class Statistics(NamedTuple):
    """What one pass over the vectors finds out."""

    vectors: int
    mean: Tensor
    """[d] float64."""
    variance: float
    """Mean over the d dimensions of the variance (divided by N)."""
    sample: Tensor
    """[at most SAMPLE, d] float32, drawn without replacement."""

    def digest(self) -> str:
        """Tells one training set from another; equal vectors in another order may differ in the last bits."""
        numbers = torch.cat([self.mean, torch.tensor([self.variance, self.vectors], dtype=torch.float64)])
        return hashlib.sha256(numbers.numpy().tobytes()).hexdigest()


class Source:
    """Vectors to read again and again."""

    def __init__(self, features: Features, *, seed: int) -> None:
        """`seed` settles the sample and every epoch's order."""
        if not isinstance(features, Tensor) and not callable(features):
            raise ExciseError("features must be a tensor, or a function that gives the shards anew at each call")
        self._features = features
        self._seed = seed

    def statistics(self) -> Statistics:
        """One pass. Raises ExciseError where vectors are missing, not finite, all the same, or differ in width."""
        origin = total = squares = sample = keys = None
        vectors = 0
        generator = torch.Generator().manual_seed(self._seed)
        for shard in self._shards():
            for chunk in torch.split(shard, max(1, _CHUNK // shard.shape[1])):
                x = chunk.cpu().double()
                if origin is None or total is None or squares is None or sample is None or keys is None:
                    # Sums about one of the vectors keep their digits where the mean is far from zero.
                    origin, total, squares = x[0].clone(), torch.zeros_like(x[0]), torch.zeros_like(x[0])
                    sample, keys = torch.empty(0, x.shape[1]), torch.empty(0)
                centred = x - origin
                total += centred.sum(0)
                squares += centred.square().sum(0)
                vectors += len(x)
                # A uniform sample of a stream of unknown length: the vectors with the smallest random keys.
                keys = torch.cat([keys, torch.rand(len(x), generator=generator)])
                best = keys.argsort()[:SAMPLE]
                keys, sample = keys[best], torch.cat([sample, x.float()])[best]
        if origin is None or total is None or squares is None or sample is None:
            raise ExciseError("no vectors to train an SAE on; capture some features first")
        mean = total / vectors
        variance = float((squares / vectors - mean.square()).mean())
        if not torch.isfinite(squares).all():
            raise ExciseError("the features hold NaN or infinity; capture them again, in float32")
        if variance <= 0:
            raise ExciseError("all feature vectors are the same; an SAE needs different ones")
        return Statistics(vectors, mean + origin, variance, sample)

    def batches(self, size: int, *, start: int = 0) -> Iterator[Tensor]:
        """Batches [size, d] float32 without end, from number `start` on.

        Each epoch shuffles within the shards; what does not fill a batch is left out of that epoch, and another
        shuffle leaves out others. `size` must not exceed the number of vectors.
        """
        epochs = (self._epoch(epoch, size) for epoch in itertools.count())
        return itertools.islice(itertools.chain.from_iterable(epochs), start, None)

    def _epoch(self, epoch: int, size: int) -> Iterator[Tensor]:
        rest: Tensor | None = None
        for number, shard in enumerate(self._shards()):
            # Hashed, so that no two of (seed, epoch, shard) share an order.
            key = hashlib.sha256(f"{self._seed}/{epoch}/{number}".encode()).digest()[:7]
            generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
            order = torch.randperm(len(shard), generator=generator).to(shard.device)
            at = 0
            if rest is not None and len(rest):
                at = size - len(rest)
                rest = torch.cat([rest, shard[order[:at]].float()])
                if len(rest) < size:
                    continue
                yield rest
            full = at + (len(shard) - at) // size * size
            for begin in range(at, full, size):
                yield shard[order[begin : begin + size]].float()
            rest = shard[order[full:]].float()

    def _shards(self) -> Iterator[Tensor]:
        if isinstance(self._features, Tensor):
            shards: Iterable[Tensor] = [self._features]
        else:
            shards = self._features()
        width = None
        for shard in shards:
            if not isinstance(shard, Tensor) or shard.ndim != 2 or not shard.is_floating_point():
                found = f"{shard.dtype} {tuple(shard.shape)}" if isinstance(shard, Tensor) else type(shard).__name__
                raise ExciseError(f"features must be floating-point tensors [vectors, width], not {found}")
            if shard.shape[1] == 0 or width not in (None, shard.shape[1]):
                raise ExciseError(f"feature shards must all have one width, but {width} and {shard.shape[1]} came")
            width = shard.shape[1]
            if len(shard):
                yield shard.detach()


def geometric_median(sample: Tensor, *, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point with the least sum of distances to `sample` [N, d] (Weiszfeld 1937): a mean that outliers barely move.

    Returns [d] float64. Stops where a step is below `tolerance` of the sample's root mean square distance.
    """
    points = sample.double()
    median = points.mean(0)
    scale = float((points - median).norm(dim=1).square().mean().sqrt())
    for _ in range(iterations):
        # A point the estimate sits on would weigh infinitely much.
        weights = 1 / (points - median).norm(dim=1).clamp_min(1e-12 * scale + torch.finfo(torch.float64).tiny)
        before, median = median, (weights @ points) / weights.sum()
        if float((median - before).norm()) <= tolerance * scale:
            break
    return median
