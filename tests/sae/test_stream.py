from __future__ import annotations

import hashlib
import itertools

import pytest
import torch

from excise.sae import Samples, Shards, stream
from excise.sae.data import Features, Source
from excise.sae.stream import Stream


def vectors(n: int, d: int = 4, seed: int = 5) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 3 + 10


def numbered(n: int, sizes: list[int]) -> Shards:
    """Vectors that hold their own number."""
    return Shards.of(torch.arange(n, dtype=torch.float32)[:, None].expand(-1, 2).split(sizes))


def batches(features: Features, size: int, count: int, *, seed: int = 0, start: int = 0, **part: slice) -> list:
    source = Stream(Source(features, seed=seed), size)
    return [source.batch(number, **part) for number in range(start, start + count)]


@pytest.mark.parametrize("buffer", [1, 7, 25, 1000])
@pytest.mark.parametrize("sizes", [[50], [3, 47], [20, 20, 10], [1] * 50, [11, 0, 39]])
def test_an_epoch_gives_each_vector_at_most_once_and_all_but_a_remainder(sizes, buffer, monkeypatch):
    monkeypatch.setattr(stream, "BUFFER", buffer)
    found = batches(numbered(50, sizes), 8, 18, seed=1)
    assert all(batch.shape == (8, 2) for batch in found)
    for epoch in range(3):
        assert len(torch.cat(found[6 * epoch : 6 * epoch + 6])[:, 0].unique()) == 48


@pytest.mark.parametrize("buffer", [1, 16, 1000])
def test_an_epoch_of_whole_batches_gives_every_vector_once(buffer, monkeypatch):
    monkeypatch.setattr(stream, "BUFFER", buffer)
    found = batches(numbered(60, [7, 13, 20, 5, 15]), 12, 10)
    for epoch in (found[:5], found[5:]):
        assert torch.cat(epoch)[:, 0].sort().values.tolist() == list(range(60))


def test_epochs_differ_and_seeds_differ():
    x = vectors(16)
    first, second = batches(x, 16, 2)
    assert not torch.equal(first, second)
    assert not torch.equal(first, batches(x, 16, 1, seed=1)[0])
    assert torch.equal(first, batches(x, 16, 1)[0])


def test_vectors_in_memory_keep_the_order_of_earlier_versions():
    """Old checkpoints of such trainings continue, and the bundled SAE can be trained again."""
    x = vectors(50)
    for epoch in range(3):
        key = int.from_bytes(hashlib.sha256(f"2/{epoch}/0".encode()).digest()[:7], "big")
        order = torch.randperm(50, generator=torch.Generator().manual_seed(key))
        for number, batch in enumerate(batches(x, 12, 4, seed=2, start=4 * epoch)):
            assert torch.equal(batch, x[order[12 * number : 12 * number + 12]])


def test_a_corpus_of_two_unlike_halves_is_mixed_from_the_first_batches_on(monkeypatch):
    """20 shards hold zeros, then 20 hold ones. A window holds eight shards."""
    monkeypatch.setattr(stream, "BUFFER", 32)
    halves = Shards.of([torch.full((4, 2), float(n >= 20)) for n in range(40)])
    for batch in batches(halves, 32, 3):
        assert 0 < float(batch.mean()) < 1


def test_every_epoch_has_another_order_of_shards(monkeypatch):
    monkeypatch.setattr(stream, "BUFFER", 4)
    orders = []
    for epoch in torch.cat(batches(numbered(40, [4] * 10), 4, 30)).split(40):
        shards = (epoch[:, 0] // 4).long().tolist()
        assert all(len(set(shards[n : n + 4])) == 1 for n in range(0, 40, 4)), "a window is one shard here"
        orders.append(tuple(shards[::4]))
        assert sorted(orders[-1]) == list(range(10))
    assert len(set(orders)) == 3


def test_small_shards_are_shuffled_together(monkeypatch):
    monkeypatch.setattr(stream, "BUFFER", 32)
    first, second = batches(numbered(64, [4] * 16), 32, 2)
    assert len((first[:4, 0] // 4).unique()) > 1, "a batch mixes shards"
    assert sorted(torch.cat([first, second])[:, 0].tolist()) == list(range(64))
    for batch in (first, second):
        shards = (batch[:, 0] // 4).unique()
        assert len(shards) == 8, "no more than a buffer is held"


@pytest.mark.parametrize("buffer", [1, 17, 1000])
def test_a_batch_is_the_same_however_one_comes_to_it(buffer, monkeypatch):
    monkeypatch.setattr(stream, "BUFFER", buffer)
    features = Shards.of(vectors(50).split([20, 1, 29]))
    known = batches(features, 12, 20, seed=2)
    for start in (0, 1, 4, 13):
        later = batches(features, 12, 3, seed=2, start=start)
        assert all(torch.equal(a, b) for a, b in zip(known[start:], later, strict=False))
    back = Stream(Source(features, seed=2), 12)
    assert all(torch.equal(back.batch(number), known[number]) for number in reversed(range(20)))


def test_any_batch_reads_as_few_shards_as_the_first(monkeypatch):
    monkeypatch.setattr(stream, "BUFFER", 12)
    read: list[int] = []
    x = vectors(240)

    def shard(number: int) -> torch.Tensor:
        read.append(number)
        return x[4 * number : 4 * number + 4]

    features = Shards((4,) * 60, shard, "counted")
    counts = []
    for number in (0, 1, 7, 1600, 10**9):
        read.clear()
        batches(features, 6, 1, start=number)
        counts.append(len(read))
    assert counts == [3] * 5, "one window of three shards, wherever the batch lies"
    read.clear()
    batches(features, 6, 40)
    assert sorted(read) == list(range(60)), "an epoch reads each shard once"


@pytest.mark.parametrize("buffer", [1, 20, 1000])
def test_the_parts_of_a_batch_are_the_batch(buffer, monkeypatch):
    monkeypatch.setattr(stream, "BUFFER", buffer)
    features = Shards.of(vectors(50).split([20, 2, 28]))
    parts = [batches(features, 7, 20, seed=2, part=slice(n, None, 3)) for n in range(3)]
    for number, whole in enumerate(batches(features, 7, 20, seed=2)):
        assert all(torch.equal(part[number], whole[n::3]) for n, part in enumerate(parts))


def test_half_precision_shards_come_as_float32():
    assert batches(vectors(8).half(), 4, 1)[0].dtype == torch.float32


def test_samples_stay_whole_with_their_labels(monkeypatch):
    """A window is filled by vectors: samples of five, two a shard, make windows of four samples."""
    monkeypatch.setattr(stream, "BUFFER", 20)
    states = torch.arange(20, dtype=torch.float32)[:, None, None].expand(-1, 5, 3)
    labels = torch.arange(20)[:, None] % 2 == 0
    parts = [Samples(states[n : n + 2], labels[n : n + 2]) for n in range(0, 20, 2)]
    found = batches(Shards.of(parts), 4, 5)
    assert sorted(float(batch.states[n, 0, 0]) for batch in found for n in range(4)) == list(range(20))
    for batch in found:
        assert torch.equal(batch.labels[:, 0], batch.states[:, 0, 0] % 2 == 0)
        assert len({int(n) // 2 for n in batch.states[:, 0, 0]}) == 2, "a window of two shards"
    assert len(list(itertools.chain(Source(Shards.of(parts), seed=0).labels()))) == 10
