from __future__ import annotations

import itertools
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from excise.statistics import (
    Z95,
    behind,
    change_over,
    cluster_bootstrap,
    clustered_spearman,
    holm,
    in_percent,
    mean,
    mean_over,
    paired_difference,
    ratio_over,
    share,
    share_over,
    sign_flip,
    spearman,
    wilson,
)


def by_inversion(successes: int, n: int) -> tuple[float, float]:
    """The score interval from its definition: every p that a score test at 5 % does not reject, by bisection."""
    estimate = successes / n

    def kept(p: float) -> bool:
        return abs(estimate - p) <= Z95 * math.sqrt(p * (1 - p) / n)

    ends = []
    for outside in (0.0, 1.0):
        inside, far = estimate, outside
        for _ in range(80):
            middle = (inside + far) / 2
            inside, far = (middle, far) if kept(middle) else (inside, middle)
        ends.append(inside)
    return ends[0], ends[1]


@pytest.mark.parametrize(("successes", "n"), [(1, 10), (5, 10), (9, 10), (3, 24), (23, 24), (150, 200)])
def test_wilson_is_the_inverted_score_test(successes: int, n: int) -> None:
    low, high = by_inversion(successes, n)
    figure = wilson(successes, n)
    assert figure.low == pytest.approx(low, abs=1e-9)
    assert figure.high == pytest.approx(high, abs=1e-9)


def test_wilson_by_hand() -> None:
    # No successes in n trials: the upper bound is z^2 / (n + z^2).
    figure = wilson(0, 24)
    assert figure.low == 0.0
    assert figure.high == pytest.approx(Z95**2 / (24 + Z95**2))


@given(st.integers(0, 300), st.integers(0, 300))
def test_wilson_brackets_the_share_and_mirrors(successes: int, more: int) -> None:
    n = successes + more
    figure, mirrored = wilson(successes, n), wilson(n - successes, n)
    assert 0 <= figure.low <= figure.high <= 1
    assert figure.low == pytest.approx(1 - mirrored.high)
    if n:
        assert figure.low <= figure.value <= figure.high


def test_a_share_is_of_what_is_true() -> None:
    assert share([True, False, False, True, True]) == wilson(3, 5)
    assert share([True]).value == 1


def test_nothing_to_count_is_said_plainly() -> None:
    figure = share([])
    assert math.isnan(figure.value)
    assert json.loads(json.dumps(figure.to_json())) == {"value": None, "low": 0.0, "high": 1.0, "n": 0}


@pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 4)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="trials"):
        wilson(successes, n)


def test_paired_difference_of_identical_outcomes_is_zero() -> None:
    outcomes = [True] * 18 + [False] * 6
    figure = paired_difference(outcomes, outcomes)
    assert figure.value == 0
    assert figure.low <= 0 <= figure.high


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_difference_is_antisymmetric(pairs: list[tuple[bool, bool]]) -> None:
    before, after = [b for b, _ in pairs], [a for _, a in pairs]
    there, back = paired_difference(before, after), paired_difference(after, before)
    assert there.value == pytest.approx(-back.value)
    assert there.low == pytest.approx(-back.high)
    assert -1 <= there.low <= there.value <= there.high <= 1


def test_paired_difference_covers_the_truth() -> None:
    rng = random.Random(0)
    hits, rounds, n = 0, 400, 60
    for _ in range(rounds):
        before = [rng.random() < 0.8 for _ in range(n)]
        after = [b and rng.random() < 0.9 for b in before]
        figure = paired_difference(before, after)
        hits += figure.low <= 0.8 * 0.9 - 0.8 <= figure.high
    assert hits / rounds > 0.92


def test_paired_difference_needs_pairs() -> None:
    with pytest.raises(ValueError, match="same"):
        paired_difference([True], [True, False])


def test_the_cluster_bootstrap_resamples_concepts_and_not_pictures() -> None:
    clusters = [[1.0] * 50, [0.0] * 10, [0.5, 0.5], []]
    figure = cluster_bootstrap(clusters)
    assert (figure.value, figure.n) == (pytest.approx(0.5), 3)
    # Every mean of three draws from {1, 0, ½}, by enumeration: the extreme ones come once in 27 each.
    assert (figure.low, figure.high) == (0.0, 1.0)
    assert cluster_bootstrap(clusters) == figure
    many = [[float(i % 2)] * 40 for i in range(40)]
    figure = cluster_bootstrap(many)
    # The standard error of 40 fair coins, not of 1600.
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * 0.5 / 40**0.5, rel=0.15)


def test_one_cluster_has_no_spread() -> None:
    figure = cluster_bootstrap([[1.0, 0.0]])
    assert figure.value == 0.5
    assert figure.to_json() == {"value": 0.5, "low": None, "high": None, "n": 1}
    assert math.isnan(cluster_bootstrap([]).value)


def scores_that_fit(p: float, n: int) -> tuple[float, float]:
    """Wilson's bounds by search: the shares q from which p is 1.96 standard errors of q away, at most."""
    grid = [i / 200_000 for i in range(200_001)]
    near = [q for q in grid if abs(p - q) <= Z95 * math.sqrt(q * (1 - q) / n) + 1e-12]
    return min(near), max(near)


def test_concepts_that_all_agree_have_wilsons_interval_over_their_pictures() -> None:
    figure = share_over([[True] * 6, [True] * 6])
    assert (figure.value, figure.n, figure.pictures) == (1.0, 2, 12)
    assert figure[1:3] == pytest.approx(scores_that_fit(1.0, 12), abs=1e-5)
    many = share_over([[False] * 8] * 16)
    assert many[1:3] == pytest.approx(scores_that_fit(0.0, 128), abs=1e-5), "however many agree"
    alone = share_over([[True, True, False, True]])
    assert alone[1:3] == pytest.approx(scores_that_fit(0.75, 4), abs=1e-5)


def test_few_concepts_never_have_less_than_wilsons_interval() -> None:
    apart = share_over([[True] * 24, [False] * 24])
    assert apart[:3] == (0.5, 0.0, 1.0), "how they differ counts as well"
    close = [[True] * 5 + [False], [True] * 4 + [False] * 2]
    low, high = scores_that_fit(0.75, 12)
    bare = cluster_bootstrap(close)
    assert low < bare.low and high > bare.high
    assert share_over(close)[1:3] == pytest.approx((low, high), abs=1e-5)


def test_concepts_enough_that_differ_are_resampled_and_nothing_else() -> None:
    clusters = [[1.0] * n + [0.0] * (8 - n) for n in (8, 8, 7, 8, 6)]
    assert share_over(clusters)[:4] == cluster_bootstrap(clusters)[:4]
    assert share_over(clusters).pictures == 40
    assert math.isnan(share_over([[], []]).value)


def test_changes_ratios_and_means_over_few_concepts_have_a_width() -> None:
    same = ([True] * 6, [True] * 6)
    change = change_over([same, same])
    assert change[:3] == paired_difference([True] * 12, [True] * 12)[:3]
    assert change.low < 0 < change.high
    assert change_over([same, ([True, True], [True, False])]).value == -0.25
    half = ([True, True, True, False], [True, False, True, False])
    ratio = ratio_over([half, half, ([False], [False])])
    assert (ratio.value, ratio.n, ratio.pictures) == (pytest.approx(2 / 3), 2, 8)
    assert ratio[1:3] == pytest.approx([bound / 0.75 for bound in scores_that_fit(0.5, 8)], abs=1e-4)
    assert math.isnan(ratio_over([([False], [True])]).value)
    values = [[0.1, 0.3], [0.2, 0.4]]
    low, high = mean([0.1, 0.3, 0.2, 0.4])[1:3]
    assert mean_over(values)[:3] == (pytest.approx(0.25), pytest.approx(low), pytest.approx(high))
    assert mean_over([[0.5]]).to_json() == {"value": 0.5, "low": None, "high": None, "n": 1, "pictures": 1}


def test_figures_as_text_hide_no_missing_width() -> None:
    assert in_percent({"value": 1.0, "low": 1.0, "high": 1.0, "n": 8}) == "100.0 (no spread over 8)"
    assert in_percent({"value": 0.5, "low": None, "high": None, "n": 1}) == "50.0"
    assert in_percent(share([True, False]).to_json()) == "50.0 (9.4 to 90.5)"
    assert behind({"n": 1, "pictures": 6}) == "1 concept, 6 pictures"
    assert behind({"n": 6}) == "6"


def test_spearman_is_pearson_of_ranks_with_ties_shared() -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = [3.0, 1.0, 1.0, 7.0, 2.0], [10.0, 4.0, 5.0, 5.0, 6.0]
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert math.isnan(spearman([1.0, 1.0], [1.0, 2.0]))
    with pytest.raises(ValueError, match="2 values against 1"):
        spearman([1.0, 2.0], [1.0])


def test_spearman_within_clusters_does_not_see_how_hard_each_is() -> None:
    # Within every cluster the order is the opposite; over all, harder clusters have more of both.
    x = [[1.0, 2.0, 3.0], [11.0, 12.0, 13.0], [5.0, 5.0, 5.0]]
    y = [[3.0, 2.0, 1.0], [13.0, 12.0, 11.0], [1.0, 2.0, 3.0]]
    found = clustered_spearman(x, y)
    assert found.value == -1 and found.n == 2


def test_newcombes_published_example() -> None:
    """Newcombe 1998 (Stat. Med. 17, 2635) and Altman et al., Statistics with Confidence (2000), p. 53: of 50 pairs 20,
    12, 2 and 16 were both, the first alone, the second alone and neither; 0.20 (0.056 to 0.329)."""
    pairs = [(True, True)] * 20 + [(False, True)] * 12 + [(True, False)] * 2 + [(False, False)] * 16
    figure = paired_difference([b for b, _ in pairs], [a for _, a in pairs])
    assert figure.value == pytest.approx(0.20)
    assert (figure.low, figure.high) == (pytest.approx(0.0562, abs=1e-4), pytest.approx(0.3292, abs=1e-4))


def test_paired_outcomes_that_go_together_leave_less_doubt() -> None:
    alike = paired_difference([True] * 15 + [False] * 15, [True] * 14 + [False] * 16)
    opposite = paired_difference([True] * 15 + [False] * 15, [False] * 16 + [True] * 14)
    assert alike.value == opposite.value
    assert alike.high - alike.low < 0.6 * (opposite.high - opposite.low)


def test_a_mean_has_the_normal_interval_of_its_standard_error() -> None:
    figure = mean([1.0, 2.0, 4.0, 5.0, 8.0])
    # Deviations -3, -2, 0, 1 and 4: the variance is 30 / 4.
    half = Z95 * math.sqrt(30 / 4) / math.sqrt(5)
    assert figure[:4] == pytest.approx((4.0, 4 - half, 4 + half, 5))
    one = mean([3.0])
    assert (one.value, one.n) == (3.0, 1) and math.isnan(one.low) and math.isnan(one.high)


def test_the_bootstrap_draws_as_many_clusters_as_there_are() -> None:
    # The mean of 20 draws from ten ones and ten zeros is binomial: its quantiles of 2.5 and 97.5 % are 6 and 14 of 20.
    figure = cluster_bootstrap([[float(i % 2)] for i in range(20)], draws=20_000)
    assert (figure.low, figure.high) == (0.3, 0.7)


@pytest.mark.parametrize("n", [0, 1, 2, 5, 8])
def test_a_sign_flip_test_counts_every_assignment_of_signs(n: int) -> None:
    rng = random.Random(n)
    differences = [rng.choice([-0.5, 0.0, 0.25, 0.5, 1.0]) for _ in range(n)]
    total = abs(sum(differences))
    flips = list(itertools.product((1, -1), repeat=n))
    extreme = sum(abs(sum(s * d for s, d in zip(flip, differences, strict=True))) >= total - 1e-12 for flip in flips)
    assert sign_flip(differences) == pytest.approx(extreme / len(flips))


def test_a_sign_flip_test_of_many_differences_samples_the_signs_and_is_never_0() -> None:
    assert sign_flip([1.0] * 16) == 2 / 2**16
    assert 0 < sign_flip([1.0] * 30) < 1e-4
    balanced = [1.0, -1.0] * 10 + [0.5]
    assert sign_flip(balanced) == pytest.approx(1, abs=0.05)


def test_holms_rule_against_its_definition() -> None:
    """The i-th smallest p is rejected at level a if every smaller one is, and p <= a / (n - i + 1)."""
    rng = random.Random(1)
    for n in (1, 2, 5, 9):
        values = [rng.random() ** 3 for _ in range(n)]
        adjusted = holm(values)
        for level in (0.01, 0.05, 0.2, 0.6):
            ordered = sorted(range(n), key=lambda i: values[i])
            rejected = set()
            for rank, i in enumerate(ordered):
                if values[i] > level / (n - rank):
                    break
                rejected.add(i)
            assert {i for i in range(n) if adjusted[i] <= level} == rejected
