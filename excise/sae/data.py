"""Training vectors of an SAE, in memory or in shards, and their statistics. `stream.py` has their order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
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


@dataclass(frozen=True, eq=False)
class Shards:
    """Training vectors in shards. Any of them can be read without the others."""

    sizes: tuple[int, ...]
    """Vectors of each shard, or samples."""
    read: Callable[[int], Shard]
    """Returns a shard by its number: vectors [n, d] or Samples, the same bits at every call."""
    digest: str
    """Digest of all content. A training is continued only on shards with the same one."""
    each: int = 1
    """Vectors in a sample."""
    divided: bool = False
    """Whether ranks divide the reading of vectors and send them to each other, since reading computes them."""
    labels: Callable[[int], Tensor] | None = None
    """Returns the labels of a shard of samples without its vectors."""

    @classmethod
    def of(cls, parts: Sequence[Shard]) -> Shards:
        """Return shards that are in memory."""
        digest = hashlib.sha256()
        for part in parts:
            for tensor in (part.states, part.labels) if isinstance(part, Samples) else (part,):
                digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + as_bytes(tensor))
        each = next((part.states.shape[1] for part in parts if isinstance(part, Samples)), 1)
        return cls(tuple(map(len, parts)), tuple(parts).__getitem__, digest.hexdigest(), each)


Features = Shard | Shards
"""Vectors [N, d], samples, or shards of either."""

SAMPLE = 32_768
"""Vectors used for the geometric median (OpenAI's number)."""
SEEN = 1 << 20
"""Vectors from which statistics are computed, or one shard's if it has more."""
_CHUNK = 1 << 24
"""Numbers converted to float64 at a time (128 MiB)."""


class Statistics(NamedTuple):
    """Statistics of all vectors, or of the first `SEEN` of shards in a random order."""

    mean: Tensor
    """[d] float64."""
    variance: float
    """Mean over the d dimensions of the variance (divided by N)."""
    sample: Tensor
    """[at most SAMPLE, d] float32, sampled without replacement."""


class Source:
    """Vectors that can be read repeatedly, shard by shard."""

    def __init__(self, features: Features, *, seed: int) -> None:
        """`seed` determines the sample. Raises ExciseError if there are no vectors."""
        if not isinstance(features, Tensor | Samples | Shards):
            raise ExciseError(
                f"features must be a tensor, Samples or Shards, not {type(features).__name__}; Shards.of(...) takes a "
                "list of tensors"
            )
        self._features = features
        self.seed = seed
        self.sizes = features.sizes if isinstance(features, Shards) else (len(features),)
        self.each = features.each if isinstance(features, Shards) else _each(features)
        """Vectors in a sample."""
        self.divided = isinstance(features, Shards) and features.divided
        self._width: int | None = None
        self._kind: type | None = None
        if not self.count:
            raise ExciseError("no vectors to train an SAE on; capture some features first")

    @property
    def count(self) -> int:
        """Number of samples, or of bare vectors."""
        return sum(self.sizes)

    @property
    def vectors(self) -> int:
        """Number of vectors."""
        return self.count * self.each

    def digest(self, statistics: Statistics) -> str:
        """Return a digest that identifies the training set; in memory, another order of the vectors may change it."""
        if isinstance(self._features, Shards):
            return hashlib.sha256(f"shards {self._features.digest} {self.sizes}".encode()).hexdigest()
        numbers = torch.cat([statistics.mean, torch.tensor([statistics.variance, self.vectors], dtype=torch.float64)])
        return hashlib.sha256(numbers.numpy().tobytes()).hexdigest()

    def statistics(self) -> Statistics:
        """Return statistics, from all vectors or from enough shards. Raises ExciseError if vectors are unusable."""
        origin = total = squares = sample = keys = None
        seen = 0
        generator = torch.Generator().manual_seed(self.seed)
        for number in permuted(len(self.sizes), f"{self.seed}/statistics"):
            shard = self.read(number)
            vectors = shard if isinstance(shard, Tensor) else shard.vectors
            for chunk in torch.split(vectors, max(1, _CHUNK // vectors.shape[1])):
                if not len(chunk):
                    continue
                x = chunk.cpu().double()
                if origin is None or total is None or squares is None or sample is None or keys is None:
                    # Sums relative to one of the vectors keep their precision if the mean is far from zero.
                    origin, total, squares = x[0].clone(), torch.zeros_like(x[0]), torch.zeros_like(x[0])
                    sample, keys = torch.empty(0, x.shape[1]), torch.empty(0)
                centred = x - origin
                total += centred.sum(0)
                squares += centred.square().sum(0)
                seen += len(x)
                # Uniform sampling from a stream of unknown length: keep the vectors with the smallest random keys.
                keys = torch.cat([keys, torch.rand(len(x), generator=generator)])
                best = keys.argsort()[:SAMPLE]
                keys, sample = keys[best], torch.cat([sample, x.float()])[best]
            if seen >= SEEN:
                break
        assert origin is not None and total is not None and squares is not None and sample is not None
        mean = total / seen
        variance = float((squares / seen - mean.square()).mean())
        if not torch.isfinite(squares).all():
            raise ExciseError("the features contain NaN or infinity; capture them again, in float32")
        if variance <= 0:
            raise ExciseError("all feature vectors are the same; an SAE needs different ones")
        return Statistics(mean + origin, variance, sample)

    def labels(self) -> Iterator[Tensor]:
        """Yield the labels [n, C] of every shard of samples; nothing for bare vectors."""
        known = self._features.labels if isinstance(self._features, Shards) else None
        for number in range(len(self.sizes)):
            if known is not None:
                yield known(number)
            elif isinstance(shard := self.read(number), Samples):
                yield shard.labels
            else:
                return

    def read(self, number: int) -> Shard:
        """Return a shard. Raises ExciseError if it is not as the others or as announced."""
        if not isinstance(self._features, Shards):
            return self._checked(self._features)
        shard = self._checked(self._features.read(number))
        if len(shard) != self.sizes[number]:
            raise ExciseError(f"feature shard {number} has {len(shard)} rows instead of {self.sizes[number]}")
        vectors = shard if isinstance(shard, Tensor) else shard.states
        if not torch.isfinite(vectors).all():
            raise ExciseError("the features contain NaN or infinity; capture them again, in float32")
        return shard

    def _checked(self, shard: Shard) -> Shard:
        if self._kind not in (None, type(shard)):
            raise ExciseError("feature shards must all be of one kind, tensors or Samples")
        vectors = shard.vectors if isinstance(shard, Samples) else shard
        if not isinstance(vectors, Tensor) or vectors.ndim != 2 or not vectors.is_floating_point():
            found = f"{vectors.dtype} {tuple(vectors.shape)}" if isinstance(vectors, Tensor) else type(shard).__name__
            raise ExciseError(f"features must be floating-point tensors [vectors, width], not {found}")
        if vectors.shape[1] == 0 or self._width not in (None, vectors.shape[1]):
            raise ExciseError(f"feature shards must all have one width, not both {self._width} and {vectors.shape[1]}")
        if (each := _each(shard)) != self.each:
            raise ExciseError(f"samples must all have {self.each} vectors, not {each}")
        self._kind, self._width = type(shard), vectors.shape[1]
        return shard.detach()


def permuted(count: int, key: str) -> list[int]:
    """Return the numbers below `count` in an order that depends on the key alone."""
    return torch.randperm(count, generator=seeded(key)).tolist()


def seeded(key: str) -> torch.Generator:
    """Return a generator for a key. Keys are hashed, so that no two share an order."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))


def as_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's bytes."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _each(shard: Shard) -> int:
    return shard.states.shape[1] if isinstance(shard, Samples) else 1


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
