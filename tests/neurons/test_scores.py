"""Each score against an oracle that loops over dense codes as the paper's equations are written."""

from __future__ import annotations

import math

import pytest
import torch

from excise.errors import ExciseError
from excise.neurons.scores import (
    SCORES,
    PromptCodes,
    mean_difference,
    modulated_frequency,
    modulated_frequency_per_prompt,
    snce,
    snce_per_pair,
)


def random_codes(seed: int, p: int = 3, t: int = 5, k: int = 3, m: int = 8) -> PromptCodes:
    """Codes as a TopK SAE gives them: k distinct neurons a token, some with value zero, some tokens all zero."""
    g = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randperm(m, generator=g)[:k] for _ in range(p * t)]).view(p, t, k)
    values = torch.randn(p, t, k, generator=g).relu()
    values[torch.rand(p, t, generator=g) < 0.2] = 0
    scored = torch.rand(p, t, generator=g) < 0.7
    scored[:, -1] = True
    return PromptCodes(values, indices, scored, m)


def columns(codes: PromptCodes, p: int) -> list[list[float]]:
    """Z [N][m] of the scored tokens of prompt p, dense and not normalised."""
    out = []
    for t in range(codes.values.shape[1]):
        if codes.scored[p, t]:
            z = [0.0] * codes.m
            for value, i in zip(codes.values[p, t].tolist(), codes.indices[p, t].tolist(), strict=True):
                z[i] += value
            out.append(z)
    return out


def oracle(z: list[list[float]], m: int) -> tuple[list[float], list[float]]:
    """(s, f) of eqs. 4-5 for tokens z [N][m]."""
    norms = [math.sqrt(sum(v * v for v in column)) for column in z]
    z_norm = [[v / n if n else 0.0 for v in column] for column, n in zip(z, norms, strict=True)]
    f = [float(sum(1 for column in z_norm if column[i] > 0)) for i in range(m)]
    s = [f[i] * (1 / len(z)) * sum(column[i] for column in z_norm) for i in range(m)]
    return s, f


@pytest.mark.parametrize(("p", "t", "k"), [(1, 1, 1), (1, 6, 4), (4, 1, 2), (3, 5, 3), (4, 6, 8)])
@pytest.mark.parametrize("seed", range(4))
def test_equations_4_and_5(seed, p, t, k):
    codes = random_codes(seed, p, t, k)
    s, f = oracle([z for prompt in range(p) for z in columns(codes, prompt)], codes.m)
    found = modulated_frequency(*codes)
    torch.testing.assert_close(found.s, torch.tensor(s, dtype=torch.float64))
    assert found.f.tolist() == f
    torch.testing.assert_close(found.f * found.mean, found.s)


@pytest.mark.parametrize("seed", range(5))
def test_per_prompt(seed):
    codes = random_codes(seed)
    found = modulated_frequency_per_prompt(*codes)
    for p in range(3):
        s, f = oracle(columns(codes, p), codes.m)
        torch.testing.assert_close(found.s[p], torch.tensor(s, dtype=torch.float64))
        assert found.f[p].tolist() == f


@pytest.mark.parametrize("tolerance", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_equation_6_pooled_and_per_pair(seed, tolerance):
    c, d = random_codes(seed), random_codes(seed + 100, k=1)
    pooled, per_pair = snce(c, d, tolerance), snce_per_pair(c, d, tolerance)
    s_c, _ = oracle([z for p in range(3) for z in columns(c, p)], 8)
    s_d, _ = oracle([z for p in range(3) for z in columns(d, p)], 8)
    by = [0.0] * 8
    for i in range(8):
        assert bool(pooled.kept[i]) == (s_c[i] > 0 and s_d[i] <= tolerance * s_c[i])
        for p in range(3):
            (one_c, _), (one_d, _) = oracle(columns(c, p), 8), oracle(columns(d, p), 8)
            by[i] += one_c[i] / 3 if one_c[i] > 0 and one_d[i] <= tolerance * one_c[i] else 0.0
    torch.testing.assert_close(pooled.rank_by, torch.tensor(s_c, dtype=torch.float64))
    torch.testing.assert_close(per_pair.rank_by, torch.tensor(by, dtype=torch.float64))
    assert per_pair.kept.tolist() == [b > 0 for b in by]


def test_mean_difference():
    c, d = random_codes(1), random_codes(2)
    expected = []
    for i in range(8):
        means = []
        for codes in (c, d):
            z = [column[i] for p in range(3) for column in columns(codes, p)]
            means.append(sum(z) / len(z))
        expected.append(means[0] - means[1])
    torch.testing.assert_close(mean_difference(c, d).rank_by, torch.tensor(expected, dtype=torch.float64))


def test_what_the_mask_hides_counts_for_nothing():
    codes = random_codes(3)
    hidden = codes.values.clone()
    hidden[~codes.scored] = float("nan")
    found = modulated_frequency(hidden, *codes[1:])
    torch.testing.assert_close(found.s, modulated_frequency(*codes).s)


def test_scale_of_a_token_does_not_matter():
    codes = random_codes(4)
    scales = torch.rand(3, 5, 1, dtype=torch.float64) + 0.1
    torch.testing.assert_close(
        modulated_frequency(codes.values.double() * scales, *codes[1:]).s,
        modulated_frequency(codes.values.double(), *codes[1:]).s,
    )


def test_half_precision_codes():
    codes = random_codes(5)
    half = codes.values.half()
    torch.testing.assert_close(
        modulated_frequency(half, *codes[1:]).s, modulated_frequency(half.double(), *codes[1:]).s
    )


def test_bad_input():
    codes = random_codes(6)
    with pytest.raises(ExciseError, match="no token"):
        modulated_frequency(codes.values, codes.indices, torch.zeros_like(codes.scored), 8)
    with pytest.raises(ValueError, match="P,T,k"):
        modulated_frequency(codes.values[0], codes.indices, codes.scored, 8)
    with pytest.raises(ValueError, match="bool"):
        modulated_frequency(codes.values, codes.indices, codes.scored.float(), 8)
    with pytest.raises(ValueError, match="neurons"):
        modulated_frequency(codes.values, codes.indices, codes.scored, 4)
    with pytest.raises(ExciseError, match="no pairs"):
        snce_per_pair(codes, codes.rows(torch.tensor([0])))


@pytest.mark.parametrize("name", SCORES)
def test_all_scores_answer_alike(name):
    found = SCORES[name](random_codes(7), random_codes(8), 0.0)
    assert found.rank_by.shape == found.kept.shape == found.concept.s.shape == (8,)
    assert bool((found.rank_by[found.kept] > 0).all())
