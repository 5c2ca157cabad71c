"""Training vectors of an SAE, in memory or in shards: statistics, and batches in a reproducible order."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from excise.errors import ExciseError


@dataclass(frozen=True, eq=False)
class Samples:
    """Vectors grouped by sample, such as a picture's patches or a prompt's states, with each sample's labels."""

    states: Tensor
    """[n, N, d]: N vectors of every sample."""
    labels: Tensor
    """[n, C] bool: which of C concepts it shows."""

    def __post_init__(self) -> None:
        states, labels = self.states, self.labels
        if states.ndim != 3 or labels.ndim != 2 or len(states) != len(labels) or labels.dtype != torch.bool:
            raise ExciseError(
                f"samples are states [n, N, d] and labels [n, C] of true and false, not {tuple(states.shape)} and "
                f"{labels.dtype} {tuple(labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: Tensor | slice) -> Samples:
        return Samples(self.states[rows], self.labels[rows])

    @property
    def vectors(self) -> Tensor:
        """[n N, d]."""
        return self.states.flatten(0, 1)

    def float(self) -> Samples:
        """Convert to float32."""
        return Samples(self.states.float(), self.labels)

    def detach(self) -> Samples:
        return Samples(self.states.detach(), self.labels)


Shard = Tensor | Samples
Features = Shard | Callable[[], Iterable[Shard]]
"""Vectors [N, d] or samples, or a function that returns the same shards of one kind in the same order at every call."""

SAMPLE = 32_768
"""Vectors used for the geometric median (OpenAI's number)."""
BUFFER = 1 << 17
"""Vectors shuffled together, or one shard's if it has more."""
_CHUNK = 1 << 24
"""Numbers converted to float64 at a time (128 MiB)."""


class Statistics(NamedTuple):
    """Statistics from one pass over the vectors."""

    vectors: int
    mean: Tensor
    """[d] float64."""
    variance: float
    """Mean over the d dimensions of the variance (divided by N)."""
    sample: Tensor
    """[at most SAMPLE, d] float32, sampled without replacement."""
    each: int = 1
    """Vectors in a sample."""

    def digest(self) -> str:
        """Return a digest that identifies the training set; another order of the vectors may change it."""
        numbers = torch.cat([self.mean, torch.tensor([self.variance, self.vectors], dtype=torch.float64)])
        return hashlib.sha256(numbers.numpy().tobytes()).hexdigest()


class Source:
    """Vectors that can be read repeatedly."""

    def __init__(self, features: Features, *, seed: int) -> None:
        """`seed` determines the sample and every epoch's order."""
        if not isinstance(features, Tensor | Samples) and not callable(features):
            raise ExciseError("features must be a tensor, Samples, or a function that returns the shards at every call")
        self._features = features
        self._seed = seed

    def statistics(self) -> Statistics:
        """Read everything once. Raises ExciseError if vectors are missing, not finite, all equal or differ in width."""
        origin = total = squares = sample = keys = None
        vectors = 0
        generator = torch.Generator().manual_seed(self._seed)
        each = 1
        for shard in self._shards():
            each = 1 if isinstance(shard, Tensor) else shard.states.shape[1]
            vectors_of = shard if isinstance(shard, Tensor) else shard.vectors
            for chunk in torch.split(vectors_of, max(1, _CHUNK // vectors_of.shape[1])):
                x = chunk.cpu().double()
                if origin is None or total is None or squares is None or sample is None or keys is None:
                    # Sums relative to one of the vectors keep their precision if the mean is far from zero.
                    origin, total, squares = x[0].clone(), torch.zeros_like(x[0]), torch.zeros_like(x[0])
                    sample, keys = torch.empty(0, x.shape[1]), torch.empty(0)
                centred = x - origin
                total += centred.sum(0)
                squares += centred.square().sum(0)
                vectors += len(x)
                # Uniform sampling from a stream of unknown length: keep the vectors with the smallest random keys.
                keys = torch.cat([keys, torch.rand(len(x), generator=generator)])
                best = keys.argsort()[:SAMPLE]
                keys, sample = keys[best], torch.cat([sample, x.float()])[best]
        if origin is None or total is None or squares is None or sample is None:
            raise ExciseError("no vectors to train an SAE on; capture some features first")
        mean = total / vectors
        variance = float((squares / vectors - mean.square()).mean())
        if not torch.isfinite(squares).all():
            raise ExciseError("the features contain NaN or infinity; capture them again, in float32")
        if variance <= 0:
            raise ExciseError("all feature vectors are the same; an SAE needs different ones")
        return Statistics(vectors, mean + origin, variance, sample, each)

    def labels(self) -> Iterator[Tensor]:
        """Yield the labels [n, C] of every shard of samples; nothing for bare vectors."""
        yield from (shard.labels for shard in self._shards() if isinstance(shard, Samples))

    def batches(
        self,
        size: int,
        *,
        start: int = 0,
        rows: int | None = None,
        device: torch.device | str = "cpu",
        part: slice = slice(None),
    ) -> Iterator[Shard]:
        """Yield batches of `size` vectors or samples, float32, endlessly, starting with batch number `start`.

        `rows`, the number of vectors or samples, spares reading the epochs before it. They are on a GPU `device` if
        half of its free memory holds a shuffle buffer, else wherever the features are. Each epoch shuffles together as
        many shards as hold `BUFFER` vectors: memory does not grow with the number of shards. An incomplete last batch
        is left out of its epoch; another shuffle leaves out other vectors. `size` must not exceed the number of vectors
        or samples. Of each batch only `part` is yielded, where ranks divide it.
        """
        first, skipped = divmod(start, rows // size) if rows else (0, start)
        for epoch in itertools.count(first):
            for batch in self._epoch(epoch, size, torch.device(device)):
                if skipped:
                    skipped -= 1
                else:
                    yield batch.taken(part)

    def _epoch(self, epoch: int, size: int, device: torch.device) -> Iterator[_Batch]:
        rest: Shard | None = None
        for number, buffer in enumerate(self._buffers()):
            shard = _resident(buffer, device)
            # Hashed, so that no two combinations of seed, epoch and buffer share an order.
            key = hashlib.sha256(f"{self._seed}/{epoch}/{number}".encode()).digest()[:7]
            generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
            order = torch.randperm(len(shard), generator=generator).to(_device(shard))
            at = 0
            if rest is not None and len(rest):
                at = size - len(rest)
                rest = _joined([rest, shard[order[:at]].float()])
                if len(rest) < size:
                    continue
                yield _Batch(rest)
            full = at + (len(shard) - at) // size * size
            for begin in range(at, full, size):
                yield _Batch(shard, order[begin : begin + size])
            rest = shard[order[full:]].float()

    def _buffers(self) -> Iterator[Shard]:
        buffered: list[Shard] = []
        vectors = 0
        for shard in self._shards():
            buffered.append(shard)
            vectors += len(shard) if isinstance(shard, Tensor) else len(shard.vectors)
            if vectors >= BUFFER:
                yield _joined(buffered)
                buffered, vectors = [], 0
        if buffered:
            yield _joined(buffered)

    def _shards(self) -> Iterator[Shard]:
        if isinstance(self._features, Tensor | Samples):
            shards: Iterable[Shard] = [self._features]
        else:
            shards = self._features()
        width = kind = None
        for shard in shards:
            if kind not in (None, type(shard)):
                raise ExciseError("feature shards must all be of one kind, tensors or Samples")
            kind = type(shard)
            vectors = shard.vectors if isinstance(shard, Samples) else shard
            if not isinstance(vectors, Tensor) or vectors.ndim != 2 or not vectors.is_floating_point():
                found = (
                    f"{vectors.dtype} {tuple(vectors.shape)}" if isinstance(vectors, Tensor) else type(shard).__name__
                )
                raise ExciseError(f"features must be floating-point tensors [vectors, width], not {found}")
            if vectors.shape[1] == 0 or width not in (None, vectors.shape[1]):
                raise ExciseError(f"feature shards must all have one width, not both {width} and {vectors.shape[1]}")
            width = vectors.shape[1]
            if len(shard):
                yield shard.detach()


class _Batch(NamedTuple):
    """A batch before it is copied out of its shard, so that one can be skipped at no cost."""

    shard: Shard
    order: Tensor | None = None
    """Its rows of the shard, None for all."""

    def taken(self, part: slice) -> Shard:
        """Return a part of it, float32."""
        return self.shard[part] if self.order is None else self.shard[self.order[part]].float()


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


def geometric_median(sample: Tensor, *, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """Return the point [d] float64 with the smallest sum of distances to `sample` [N, d] (Weiszfeld 1937).

    Outliers barely move it. Stops when a step is below `tolerance` of the sample's root mean square distance.
    """
    points = sample.double()
    median = points.mean(0)
    scale = float((points - median).norm(dim=1).square().mean().sqrt())
    for _ in range(iterations):
        # A point exactly at the estimate would have infinite weight.
        weights = 1 / (points - median).norm(dim=1).clamp_min(1e-12 * scale + torch.finfo(torch.float64).tiny)
        before, median = median, (weights @ points) / weights.sum()
        if float((median - before).norm()) <= tolerance * scale:
            break
    return median
