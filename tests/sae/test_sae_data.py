from __future__ import annotations

import itertools

import pytest
import torch

from excise.errors import ExciseError
from excise.sae import data
from excise.sae.data import SAMPLE, Source, geometric_median


def vectors(n: int, d: int = 4, seed: int = 5) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 3 + 10


def sharded(x: torch.Tensor, sizes: list[int]):
    return lambda: iter(x.split(sizes))


def test_statistics_are_exact_and_the_same_in_shards():
    x = vectors(100)
    whole = Source(x, seed=0).statistics()
    parts = Source(sharded(x, [1, 60, 0, 39]), seed=0).statistics()
    for found in (whole, parts):
        assert found.vectors == 100
        torch.testing.assert_close(found.mean, x.double().mean(0))
        assert found.variance == pytest.approx(float(x.double().var(0, correction=0).mean()))
        assert sorted(map(tuple, found.sample.tolist())) == sorted(map(tuple, x.tolist()))


def test_the_sample_is_uniform_over_shards():
    x = torch.arange(4 * SAMPLE, dtype=torch.float32)[:, None].expand(-1, 2)
    sample = Source(sharded(x, [SAMPLE, 3 * SAMPLE]), seed=0).statistics().sample
    assert len(sample) == SAMPLE
    assert len(sample[:, 0].unique()) == SAMPLE
    share = float((sample[:, 0] < SAMPLE).float().mean())
    assert share == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("buffer", [1, 7, 25, 1000])
@pytest.mark.parametrize("sizes", [[50], [3, 47], [20, 20, 10], [1] * 50, [11, 0, 39]])
def test_an_epoch_gives_each_vector_at_most_once_and_all_but_a_remainder(sizes, buffer, monkeypatch):
    monkeypatch.setattr(data, "BUFFER", buffer)
    x = torch.arange(50, dtype=torch.float32)[:, None] + torch.rand(1, 3)
    batches = list(itertools.islice(Source(sharded(x, sizes), seed=1).batches(8), 6))
    assert all(batch.shape == (8, 3) for batch in batches)
    assert len(torch.cat(batches).unique(dim=0)) == 48


def test_epochs_differ_and_seeds_differ():
    x = vectors(16)
    first, second = itertools.islice(Source(x, seed=0).batches(16), 2)
    assert not torch.equal(first, second)
    assert not torch.equal(first, next(Source(x, seed=1).batches(16)))
    assert torch.equal(first, next(Source(x, seed=0).batches(16)))


def test_small_shards_are_shuffled_together(monkeypatch):
    monkeypatch.setattr(data, "BUFFER", 32)
    x = torch.arange(64, dtype=torch.float32)[:, None].expand(-1, 2)
    first, second = itertools.islice(Source(sharded(x, [4] * 16), seed=0).batches(32), 2)
    assert sorted(first[:, 0].tolist()) == list(range(32)), "no more than a buffer is held"
    assert sorted(second[:, 0].tolist()) == list(range(32, 64))
    assert len((first[:4, 0] // 4).unique()) > 1, "a batch mixes shards"


@pytest.mark.parametrize("buffer", [1, 1000])
@pytest.mark.parametrize("start", [1, 4, 13])
def test_starting_later_gives_the_same_batches(start, buffer, monkeypatch):
    monkeypatch.setattr(data, "BUFFER", buffer)
    source = Source(sharded(vectors(50), [20, 30]), seed=2)
    all_of_them = list(itertools.islice(source.batches(12), start + 3))
    later = list(itertools.islice(source.batches(12, start=start), 3))
    assert all(torch.equal(a, b) for a, b in zip(all_of_them[start:], later, strict=True))


def test_half_precision_shards_come_as_float32():
    assert next(Source(vectors(8).half(), seed=0).batches(4)).dtype == torch.float32


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(0, 4), "no vectors"),
        (torch.zeros(4), r"\[vectors, width\]"),
        (torch.zeros(4, 4, dtype=torch.long), "floating-point"),
        (torch.ones(4, 4), "the same"),
        (torch.tensor([[1.0, torch.nan], [0.0, 1.0]]), "NaN"),
        (torch.tensor([[1.0, torch.inf], [0.0, 1.0]]), "NaN"),
        (lambda: iter([torch.rand(3, 4), torch.rand(3, 5)]), "one width"),
        (lambda: iter([[1.0]]), "list"),
        (lambda: iter([]), "no vectors"),
    ],
)
def test_unusable_features_are_refused(features, message):
    with pytest.raises(ExciseError, match=message):
        Source(features, seed=0).statistics()


def test_a_bare_iterator_is_refused():
    with pytest.raises(ExciseError, match="function that returns the shards at every call"):
        Source(iter([torch.rand(3, 4)]), seed=0)


def test_the_geometric_median_has_the_least_sum_of_distances():
    points = vectors(60, 3).double()
    median = geometric_median(points)
    least = (points - median).norm(dim=1).sum()
    for direction in torch.eye(3, dtype=torch.float64):
        for shift in (-1e-2, 1e-2):
            assert (points - median - shift * direction).norm(dim=1).sum() > least


def test_the_geometric_median_ignores_an_outlier_and_survives_sitting_on_a_point():
    points = torch.tensor([[-1.0, 0], [1, 0], [0, 1], [0, -1], [1e6, 1e6]])
    assert float(geometric_median(points, iterations=500).norm()) < 1
    cross = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    torch.testing.assert_close(geometric_median(cross), torch.zeros(2, dtype=torch.float64))
    assert torch.equal(geometric_median(torch.ones(3, 2)), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("buffer", [1, 17, 1000])
@pytest.mark.parametrize("start", [0, 3, 4, 13, 4001])
def test_starting_later_reads_no_epoch_before_it(start, buffer, monkeypatch):
    monkeypatch.setattr(data, "BUFFER", buffer)
    x, read = vectors(50), []

    def shards():
        read.append(0)
        for shard in x.split([20, 1, 29]):
            read[-1] += len(shard)
            yield shard

    source = Source(shards, seed=2)
    later = list(itertools.islice(source.batches(12, start=start, rows=50), 3))
    assert len(read) <= 2, "three batches lie in two epochs of four"
    if start < 100:
        known = list(itertools.islice(source.batches(12), start + 3))[start:]
        assert all(torch.equal(a, b) for a, b in zip(known, later, strict=True))


def test_the_parts_of_a_batch_are_the_batch(monkeypatch):
    monkeypatch.setattr(data, "BUFFER", 20)
    source = Source(sharded(vectors(50), [20, 30]), seed=2)
    parts = [list(itertools.islice(source.batches(7, part=slice(n, None, 3)), 20)) for n in range(3)]
    for number, whole in enumerate(itertools.islice(source.batches(7), 20)):
        assert all(torch.equal(part[number], whole[n::3]) for n, part in enumerate(parts))
