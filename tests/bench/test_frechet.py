from __future__ import annotations

import numpy as np
import pytest

from excise.bench.frechet import frechet
from excise.errors import ExciseError


def features(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def square_root(matrix: np.ndarray) -> np.ndarray:
    """Of any diagonalisable matrix with real, non-negative eigenvalues: V diag(√λ) V⁻¹."""
    values, vectors = np.linalg.eig(matrix.astype(complex))
    return (vectors @ np.diag(np.sqrt(values)) @ np.linalg.inv(vectors)).real


@pytest.mark.parametrize("seed", range(5))
def test_the_distance_is_the_formula_of_the_paper(seed: int) -> None:
    a, b = features(60, 4, seed), features(45, 4, seed + 100)
    apart, one, two = a.mean(0) - b.mean(0), np.cov(a.T), np.cov(b.T)
    expected = float(apart @ apart + np.trace(one + two - 2 * square_root(one @ two)))
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet(b, a) == pytest.approx(expected, rel=1e-9)


def test_what_it_is_for_known_sets() -> None:
    a = features(100, 3, 0)
    alike = [frechet(same, same) for same in (features(100, 3, seed) for seed in range(20))]
    assert alike == pytest.approx([0] * 20, abs=1e-9)
    assert str(min(alike)) == "0.0"
    assert frechet(a, a + np.array([3.0, 0.0, 4.0])) == pytest.approx(25)
    # In one dimension: (σ1 - σ2)², here for standard deviations 1 and 3 times the same.
    line = a[:, :1]
    spread = line.std(ddof=1)
    assert frechet(line, 3 * (line - line.mean()) + line.mean()) == pytest.approx((2 * spread) ** 2)
    # A feature that never varies has no covariance to take a root of.
    flat = np.concatenate([a, np.ones((100, 1))], 1)
    assert frechet(flat, flat + 1) == pytest.approx(4)


def test_what_means_nothing_is_refused() -> None:
    with pytest.raises(ExciseError, match="needs 20 pictures a side, there are 19"):
        frechet(features(40, 4, 0), features(19, 4, 0))
    with pytest.raises(ExciseError, match="cannot be compared"):
        frechet(features(40, 4, 0), features(40, 5, 0))
    with pytest.raises(ExciseError, match="not finite"):
        frechet(features(40, 4, 0), np.full((40, 4), np.nan))
    one = features(40, 4, 0)
    one[3, 2] = np.inf
    with pytest.raises(ExciseError, match="not finite"):
        frechet(one, features(40, 4, 0))
