"""Safe-SAIL's metrics without a language model, against counting by hand."""

from __future__ import annotations

import pytest
import torch

from excise.errors import ExciseError
from excise.neurons import PromptCodes
from excise.neurons.contrast import contrast, distinguishing_frequency, i_cdf, l0_t


def codes(seed: int, prompts: int = 7, tokens: int = 5, k: int = 3, m: int = 12) -> PromptCodes:
    generator = torch.Generator().manual_seed(seed)
    values = (torch.rand(prompts, tokens, k, generator=generator) - 0.3).clamp(min=0)
    indices = torch.stack(
        [torch.stack([torch.randperm(m, generator=generator)[:k] for _ in range(tokens)]) for _ in range(prompts)]
    )
    scored = torch.rand(prompts, tokens, generator=generator) < 0.7
    return PromptCodes(values, indices, scored, m)


def peak(side: PromptCodes, prompt: int, neuron: int) -> float:
    found = [0.0]
    for t in range(side.values.shape[1]):
        if side.scored[prompt, t]:
            for value, index in zip(side.values[prompt, t].tolist(), side.indices[prompt, t].tolist(), strict=True):
                found += [value] if index == neuron else []
    return max(found)


@pytest.mark.parametrize("threshold", [0.0, 0.25])
def test_the_distinguishing_frequency_by_hand(threshold: float) -> None:
    one, other = codes(1), codes(2)
    by_hand = [sum(peak(one, p, i) > threshold and peak(other, p, i) == 0 for p in range(7)) / 7 for i in range(one.m)]
    assert distinguishing_frequency(one, other, threshold).tolist() == pytest.approx(by_hand)


def test_i_cdf_is_the_area_under_l0_t() -> None:
    frequency = distinguishing_frequency(codes(3, prompts=20), codes(4, prompts=20))
    steps = 20_000
    area = sum(l0_t(frequency, (n + 0.5) / steps) for n in range(steps)) / steps
    assert i_cdf(frequency) == pytest.approx(area, abs=1e-3)


def test_l0_t_counts_what_reaches_t_and_rounding_costs_nobody_his_place() -> None:
    frequency = torch.tensor([0.1 + 0.2, 0.3, 0.29, 1.0, 0.0], dtype=torch.float64)
    assert [l0_t(frequency, t) for t in (0.3, 1.0, 0.05)] == [3, 1, 4]


def test_concentration_is_one_where_one_neuron_carries_the_concept() -> None:
    scored = torch.ones(4, 1, dtype=torch.bool)
    alone = PromptCodes(torch.ones(4, 1, 1), torch.zeros(4, 1, 1, dtype=torch.long), scored, 3)
    nothing = PromptCodes(torch.zeros(4, 1, 1), torch.zeros(4, 1, 1, dtype=torch.long), scored, 3)
    shared = PromptCodes(torch.ones(4, 1, 2), torch.tensor([[[0, 1]]] * 4), scored, 3)
    assert contrast(alone, nothing).concentration == 1
    assert contrast(shared, PromptCodes(torch.zeros(4, 1, 2), shared.indices, scored, 3)).concentration == 0.5
    assert contrast(nothing, nothing).row() == {"i_cdf": 0.0, "l0_t": 0, "best": 0.0, "concentration": 0.0}


def test_what_is_no_pair_is_refused() -> None:
    with pytest.raises(ExciseError, match="give pairs, read by one SAE"):
        distinguishing_frequency(codes(1, prompts=3), codes(2, prompts=4))
    with pytest.raises(ExciseError, match="above 0"):
        l0_t(torch.zeros(3), 0)
