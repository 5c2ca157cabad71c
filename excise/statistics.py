"""Intervals for shares, means and paired differences, in plain Python without an array library."""

from __future__ import annotations

import math
import random
import statistics
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Z95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""
FEW = 5
"""Number of concepts below which resampling them says almost nothing about their spread."""


class Estimate(NamedTuple):
    """Measured share, mean or difference of shares, with its interval and number of trials.

    `value` is NaN if there was nothing to count (`n` = 0).
    """

    value: float
    low: float
    high: float
    n: int
    pictures: int = 0
    """Number of pictures in a mean over `n` concepts; 0 if `n` counts pictures."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, rounded to four places. NaN becomes null, and `pictures` is left out if it is 0."""
        rounded = {
            name: None if math.isnan(x) else round(x, 4) for name, x in zip(self._fields, self[:3], strict=False)
        }
        return {**rounded, "n": self.n} | ({"pictures": self.pictures} if self.pictures else {})


def from_json(figure: Mapping[str, Any]) -> Estimate:
    """Read a figure written by `Estimate.to_json`."""
    value, low, high = (math.nan if figure[name] is None else figure[name] for name in ("value", "low", "high"))
    return Estimate(value, low, high, figure["n"], figure.get("pictures", 0))


def in_percent(figure: Mapping[str, Any]) -> str:
    """Format an `Estimate.to_json` in per cent: `value (low to high)`, or `never drawn` without trials.

    Earlier versions gave an interval of width 0 if all concepts agreed; it becomes `100.0 (no spread over 8)`.
    """
    if figure["value"] is None:
        return "never drawn"
    if figure["low"] is None:
        return f"{100 * figure['value']:.1f}"
    if figure["low"] == figure["high"]:
        return f"{100 * figure['value']:.1f} (no spread over {figure['n']})"
    value, low, high = (100 * figure[name] for name in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def behind(figure: Mapping[str, Any]) -> str:
    """Format the sample size of a figure: `16 concepts, 128 pictures`, or only the number of trials."""
    if figure.get("pictures"):
        return f"{figure['n']} concept{'s' * (figure['n'] != 1)}, {figure['pictures']} pictures"
    return str(figure["n"])


def wilson(successes: int, n: int, z: float = Z95) -> Estimate:
    """Return Wilson's score interval for a binomial share (Wilson 1927).

    The bounds are the p at which |successes/n - p| = z * sqrt(p (1 - p) / n). Raises ValueError unless
    0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    share = successes / n
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    centre = share + z * z / (2 * n)
    # At the ends the bound is exact; rounding must not push it past the share.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == n else (centre + spread) / scale
    return Estimate(share, low, high, n)


def share(outcomes: Sequence[bool]) -> Estimate:
    """Return the share of true outcomes with Wilson's interval."""
    return wilson(sum(map(bool, outcomes)), len(outcomes))


def mean(values: Sequence[float], z: float = Z95) -> Estimate:
    """Return the mean with its normal interval: value ± z * s / sqrt(n), s the unbiased standard deviation.

    The interval is NaN for fewer than two values.
    """
    n = len(values)
    if n < 2:
        return Estimate(values[0] if n else math.nan, math.nan, math.nan, n)
    value, half = statistics.fmean(values), z * statistics.stdev(values) / math.sqrt(n)
    return Estimate(value, value - half, value + half, n)


def paired_difference(before: Sequence[bool], after: Sequence[bool], z: float = Z95) -> Estimate:
    """Return the share of `after` minus that of `before`, on the same trials, with Newcombe's hybrid score interval.

    Newcombe 1998 (Stat. Med. 17, 2635), method 10: combines Wilson's bounds of both shares with the
    continuity-corrected correlation of the two outcomes. Raises ValueError if the lengths differ.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} trials before and {len(after)} after: a paired difference needs the same")
    n = len(before)
    if n == 0:
        return Estimate(math.nan, -1.0, 1.0, 0)
    first, second = wilson(sum(map(bool, after)), n, z), wilson(sum(map(bool, before)), n, z)
    phi = _correlation(before, after)
    down, up = first.value - first.low, second.high - second.value
    low = math.sqrt(max(0.0, down * down - 2 * phi * down * up + up * up))
    up, down = first.high - first.value, second.value - second.low
    high = math.sqrt(max(0.0, up * up - 2 * phi * up * down + down * down))
    value = first.value - second.value
    return Estimate(value, max(-1.0, value - low), min(1.0, value + high), n)


def cluster_bootstrap(clusters: Sequence[Sequence[float]], draws: int = 2000, seed: int = 0) -> Estimate:
    """Return the mean of the clusters' means, with a 95 % percentile interval from resampling clusters (Efron 1979).

    For a mean over concepts: outcomes of one concept are correlated, so concepts are resampled, not pictures. Empty
    clusters are left out; `n` counts the others. The interval is NaN for fewer than two.
    """
    means = [math.fsum(cluster) / len(cluster) for cluster in clusters if len(cluster)]
    n = len(means)
    if n < 2:
        return Estimate(means[0] if means else math.nan, math.nan, math.nan, n)
    rng = random.Random(seed)
    drawn = sorted(math.fsum(rng.choices(means, k=n)) / n for _ in range(draws))
    return Estimate(math.fsum(means) / n, drawn[round(0.025 * (draws - 1))], drawn[round(0.975 * (draws - 1))], n)


def over_concepts(means: Sequence[float], pooled: Estimate) -> Estimate:
    """Return the mean over concepts' means; `pooled` is the same figure over all their pictures together.

    The interval is `cluster_bootstrap`'s. With fewer than `FEW` concepts, or if all have the same mean, resampling
    gives little or no width, and the interval is widened to contain that of `pooled` (Wilson's, for a share).
    """
    figure = cluster_bootstrap([[value] for value in means])._replace(pictures=pooled.n)
    if not means or (len(means) >= FEW and len(set(means)) > 1):
        return figure
    low, high = (
        [bound for bound in bounds if not math.isnan(bound)]
        for bounds in ((figure.low, pooled.low, figure.value), (figure.high, pooled.high, figure.value))
    )
    # A mean of one picture, or of pictures whose values have no interval: the spread is unknown.
    return figure if len(low) == 1 else figure._replace(low=min(low), high=max(high))


def over_attacks(by_concept: Sequence[Sequence[Sequence[float]]]) -> Estimate:
    """Return the mean over concepts of the mean over attacks of the share of true outcomes.

    Attacks without outcomes, which are not testable, are left out, and so are concepts without others.
    """
    testable = [[outcomes for outcomes in attacks if outcomes] for attacks in by_concept]
    means = [sum(sum(some) / len(some) for some in attacks) / len(attacks) for attacks in testable if attacks]
    return over_concepts(means, share([bool(hit) for attacks in testable for some in attacks for hit in some]))


def share_over(clusters: Sequence[Sequence[float]]) -> Estimate:
    """Return the mean over concepts of the share of true outcomes. Concepts without outcomes are left out."""
    some = [[bool(outcome) for outcome in cluster] for cluster in clusters if len(cluster)]
    return over_concepts([sum(one) / len(one) for one in some], share([hit for one in some for hit in one]))


def mean_over(clusters: Sequence[Sequence[float]]) -> Estimate:
    """Return the mean over concepts of their means. Concepts without values are left out."""
    some = [cluster for cluster in clusters if len(cluster)]
    return over_concepts([math.fsum(one) / len(one) for one in some], mean([value for one in some for value in one]))


def change_over(clusters: Sequence[tuple[Sequence[bool], Sequence[bool]]]) -> Estimate:
    """Return the mean over concepts of the change in a share, from paired outcomes before and after."""
    some = [(before, after) for before, after in clusters if len(before)]
    all_before, all_after = ([bool(hit) for pair in some for hit in pair[side]] for side in (0, 1))
    return over_concepts([(sum(a) - sum(b)) / len(b) for b, a in some], paired_difference(all_before, all_after))


def ratio_over(clusters: Sequence[tuple[Sequence[bool], Sequence[bool]]]) -> Estimate:
    """Return the mean over concepts of the share after divided by the share before.

    Concepts without a hit before are left out. For few concepts, the share before is treated as known: Wilson's
    interval of the share after is divided by it.
    """
    some = [(before, after) for before, after in clusters if any(before)]
    means = [(sum(after) / len(after)) / (sum(before) / len(before)) for before, after in some]
    if not some:
        return over_concepts([], share([]))
    before, after = (share([bool(hit) for pair in some for hit in pair[side]]) for side in (0, 1))
    base = before.value
    return over_concepts(means, Estimate(after.value / base, after.low / base, after.high / base, after.n))


def sign_flip(differences: Sequence[float]) -> float:
    """Return the two-sided p-value that paired differences have mean 0, by flipping all signs (Fisher 1935).

    Every assignment of signs is counted up to 2**16, for more than 16 differences 2**16 random ones. Differences that
    are 0 change nothing and are left out; without others, p is 1. For a comparison over concepts: one difference for
    each concept, since pictures of one concept are correlated.
    """
    some = [abs(value) for value in differences if value]
    total, n = abs(math.fsum(differences)), len(some)
    if n <= 16:
        sums = [0.0]
        for value in some:
            sums = [s + sign for s in sums for sign in (value, -value)]
        extreme, every = sum(abs(s) >= total - 1e-12 for s in sums), len(sums)
    else:
        rng, every = random.Random(0), 2**16
        drawn = (math.fsum(value if rng.random() < 0.5 else -value for value in some) for _ in range(every))
        # The observed assignment is one of those possible, so p is never 0.
        extreme, every = 1 + sum(abs(s) >= total - 1e-12 for s in drawn), every + 1
    return extreme / every


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, in the given order (Holm 1979).

    The i-th smallest of n is multiplied by n - i + 1, is at least the adjusted one before it, and at most 1.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    adjusted, least = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = least
    return adjusted


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation, with ties at their mean rank. NaN if one side is constant.

    Raises ValueError if the lengths differ.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} values against {len(y)}")
    a, b = _ranks(x), _ranks(y)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    return statistics.correlation(a, b)


def clustered_spearman(x: Sequence[Sequence[float]], y: Sequence[Sequence[float]]) -> Estimate:
    """Return the mean over clusters of Spearman's correlation within each, with the interval of `cluster_bootstrap`.

    It is computed within clusters (concepts), as some concepts are harder than others for everything compared (SAEs).
    Clusters with a constant side are left out.
    """
    within = [spearman(a, b) for a, b in zip(x, y, strict=True)]
    return cluster_bootstrap([[value] for value in within if not math.isnan(value)])


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [(2 * bisect_left(ordered, v) + ordered.count(v) + 1) / 2 for v in values]


def _correlation(before: Sequence[bool], after: Sequence[bool]) -> float:
    pairs = [(bool(b), bool(a)) for b, a in zip(before, after, strict=True)]
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    if margins == 0:
        return 0.0
    cross = float(both * neither - lost * gained)
    if cross > 0:
        cross = max(cross - len(pairs) / 2, 0.0)
    return cross / math.sqrt(margins)
