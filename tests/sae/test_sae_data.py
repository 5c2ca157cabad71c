from __future__ import annotations

import pytest
import torch

from excise.errors import ExciseError
from excise.sae import Samples, Shards, data
from excise.sae.data import SAMPLE, Source, geometric_median


def vectors(n: int, d: int = 4, seed: int = 5) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 3 + 10


def sharded(x: torch.Tensor, sizes: list[int]):
    return Shards.of(x.split(sizes))


def test_statistics_are_exact_and_the_same_in_shards():
    x = vectors(100)
    whole = Source(x, seed=0).statistics()
    parts = Source(sharded(x, [1, 60, 0, 39]), seed=0).statistics()
    for found in (whole, parts):
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


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(0, 4), "no vectors"),
        (torch.zeros(4), r"\[vectors, width\]"),
        (torch.zeros(4, 4, dtype=torch.long), "floating-point"),
        (torch.ones(4, 4), "the same"),
        (torch.tensor([[1.0, torch.nan], [0.0, 1.0]]), "NaN"),
        (torch.tensor([[1.0, torch.inf], [0.0, 1.0]]), "NaN"),
        (Shards.of([torch.rand(3, 4), torch.rand(3, 5)]), "one width"),
        (Shards((3,), lambda number: [1.0, 2.0, 3.0], ""), "not list"),
        (Shards((3, 3), lambda number: torch.rand(3 + number, 4), ""), "shard 1 has 4 rows instead of 3"),
        (Shards.of([]), "no vectors"),
        (Shards.of([torch.zeros(0, 4)]), "no vectors"),
        (Shards((2,), lambda number: Samples(torch.rand(2, 3, 4), torch.ones(2, 1).bool()), "", 5), "have 5 vectors"),
        (lambda: iter([torch.rand(3, 4)]), "not function"),
        (iter([torch.rand(3, 4)]), "list_iterator"),
    ],
)
def test_unusable_features_are_refused(features, message):
    with pytest.raises(ExciseError, match=message):
        Source(features, seed=0).statistics()


def test_statistics_of_many_shards_are_those_of_some_of_each_kind(monkeypatch):
    """Of 20 shards at 0 and 20 at 8, a tenth of all vectors is read; they are of both kinds."""
    monkeypatch.setattr(data, "SEEN", 40)
    read = []

    def shard(number: int) -> torch.Tensor:
        read.append(number)
        return vectors(10, seed=number) / 3 - 10 / 3 + 8 * (number >= 20)

    source = Source(Shards((10,) * 40, shard, "two kinds"), seed=0)
    found = source.statistics()
    assert len(read) == 4 and source.vectors == 400
    assert 0 < sum(number >= 20 for number in read) < 4
    seen = torch.cat([shard(number) for number in read[:4]]).double()
    torch.testing.assert_close(found.mean, seen.mean(0))
    assert found.variance == pytest.approx(float(seen.var(0, correction=0).mean()))
    assert len(found.sample) == 40


def test_a_shard_that_the_statistics_left_out_is_checked_when_it_is_read(monkeypatch):
    monkeypatch.setattr(data, "SEEN", 1)
    parts = [torch.full((4, 2), torch.nan), torch.rand(4, 2)]
    seeds = (Source(Shards.of(parts), seed=seed) for seed in range(50))
    source = next(source for source in seeds if data.permuted(2, f"{source.seed}/statistics") == [1, 0])
    source.statistics()
    with pytest.raises(ExciseError, match="NaN"):
        source.read(0)


def test_the_digest_of_shards_is_their_own_and_needs_no_reading():
    def never(number: int) -> torch.Tensor:
        raise AssertionError

    statistics = Source(vectors(6), seed=0).statistics()
    digests = {
        Source(Shards(sizes, never, digest), seed=0).digest(statistics)
        for sizes, digest in (((3, 3), "a"), ((3, 3), "b"), ((2, 4), "a"))
    }
    assert len(digests) == 3
    assert Shards.of([vectors(4)]).digest != Shards.of([vectors(4) + 1]).digest
    labels = torch.ones(4, 1).bool()
    states = vectors(8).view(4, 2, 4)
    assert Shards.of([Samples(states, labels)]).digest != Shards.of([Samples(states, ~labels)]).digest


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
