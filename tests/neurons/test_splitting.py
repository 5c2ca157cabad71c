"""How a concept is split over neurons, against counting by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from excise.errors import ExciseError
from excise.neurons.splitting import effective_neurons, monosemanticity, own_top


def test_a_top_neuron_is_a_concepts_own_unless_another_has_it_too() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.0, 0.5, 0.4], [0.3, 0.1, 0.8]])
    assert own_top(scores).tolist() == [False, False, True]


def test_effective_neurons_by_hand() -> None:
    scores = torch.tensor([[0.0, 3.0, -2.0, 0.0], [1.0, 1.0, 1.0, 1.0], [3.0, 1.0, 0.0, -9.0], [-1.0, 0, 0, 0]])
    made = effective_neurons(scores).tolist()
    shares = (0.75, 0.25)
    assert made[:3] == pytest.approx([1.0, 4.0, math.exp(-sum(s * math.log(s) for s in shares))])
    assert math.isnan(made[3])


def stump(codes: torch.Tensor, present: torch.Tensor) -> tuple[float, int]:
    """The best single neuron by Gini impurity, every neuron and every threshold tried in turn: accuracy, number."""
    found = []
    for i in range(codes.shape[1]):
        values = sorted(set(codes[:, i].tolist()))
        for low, high in pairwise(values):
            sides = [present[codes[:, i] <= (low + high) / 2], present[codes[:, i] > (low + high) / 2]]
            shares = [float(side.double().mean()) for side in sides]
            impurity = sum(len(side) * s * (1 - s) for side, s in zip(sides, shares, strict=True))
            right = sum(max(int(side.sum()), len(side) - int(side.sum())) for side in sides)
            found.append((impurity, i, right / len(codes)))
    _, number, accuracy = min(found)
    return accuracy, number


def test_monosemanticity_by_trying_every_split() -> None:
    generator = torch.Generator().manual_seed(0)
    present = torch.arange(40) % 2 == 0
    codes = torch.rand(40, 6, generator=generator)
    codes[:, 2] += 0.7 * present
    codes[:, 4] += 0.5 * present
    made = monosemanticity(codes, present, p=1, n=3)
    best, root = stump(codes, present)
    without = codes.clone()
    without[:, root] = 0
    after, _ = stump(without, present)
    assert (made.capacity, made.local) == pytest.approx((best, 2 * (best - after)))
    assert made.local / 2 <= made.overall / made.capacity <= (made.local + 1) / 2


def test_what_deeper_trees_add_is_a_mean_over_them() -> None:
    """A concept that is there where one of two neurons fires alone: no neuron by itself tells it, two together do."""
    first, second = torch.arange(40) % 2 == 0, torch.arange(40) % 4 < 2
    made = monosemanticity(torch.stack([first, second], 1).float(), first ^ second, p=1, n=2)
    # acc_0 = 0.5, acc_1 = acc_2 = 1, A / n = (0.5 + 0.5) / 2; taking a neuron away loses nothing.
    assert made == pytest.approx((0.5, 0.0, 0.5 * (0 + 0.5) / 2))


def test_one_clean_neuron_is_more_monosemantic_than_a_split_concept() -> None:
    generator = torch.Generator().manual_seed(1)
    present = torch.arange(60) < 20
    clean = torch.rand(60, 5, generator=generator)
    split = clean.clone()
    clean[:, 0] += 2.0 * present
    half = torch.rand(60, generator=generator) < 0.5
    split[:, 0] += 2.0 * (present & half)
    split[:, 1] += 2.0 * (present & ~half)
    own, shared = monosemanticity(clean, present), monosemanticity(split, present)
    assert own.capacity == 1.0
    assert own.overall > shared.overall + 0.1
    with pytest.raises(ExciseError, match="with it and without it"):
        monosemanticity(clean, present & False)
