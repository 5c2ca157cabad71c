"""Fréchet distance between two sets of features, as in FID (Heusel et al. 2017), in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from excise.errors import ExciseError

Features = np.ndarray[Any, np.dtype[np.floating[Any]]]
LEAST = 5
"""Least number of pictures per feature dimension. With fewer, the covariance is too poor for a meaningful distance."""


def frechet(first: Features, second: Features) -> float:
    """Compute the squared Fréchet distance of the Gaussians fitted to features `[n, d]` and `[m, d]`.

    |μ1 - μ2|² + tr(C1 + C2 - 2 (C1 C2)^½), with unbiased covariances. Raises ExciseError if the widths differ, a value
    is not finite, or a side has fewer than 5 d rows.
    """
    for side in (first, second):
        if side.ndim != 2 or side.shape[1] != first.shape[1]:
            raise ExciseError(f"features of shape {first.shape} and {second.shape} cannot be compared")
        if len(side) < LEAST * side.shape[1]:
            raise ExciseError(
                f"a Fréchet distance over {side.shape[1]} features needs {LEAST * side.shape[1]} pictures a side, "
                f"there are {len(side)}; generate more, or leave it out"
            )
        if not np.isfinite(side).all():
            raise ExciseError("the features contain values that are not finite numbers")
    a, b = first.astype(np.float64), second.astype(np.float64)
    apart = a.mean(0) - b.mean(0)
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    one, two = np.atleast_2d(one), np.atleast_2d(two)
    # tr (C1 C2)^½ = tr (√C1 C2 √C1)^½. The latter is symmetric, so its eigenvalues are real.
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ two @ root).clip(0)).sum()
    squared = float(apart @ apart + np.trace(one) + np.trace(two) - 2 * cross)
    return max(0.0, squared)  # rounding can push it below 0
