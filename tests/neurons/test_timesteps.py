from __future__ import annotations

import pytest
import torch

from excise.errors import ExciseError
from excise.neurons.timesteps import Means, assign, score, select


def test_means_by_step_are_those_of_the_dense_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    means, dense = Means(3, 7), torch.zeros(3, 40, 7, dtype=torch.float64)
    for step in range(3):
        for n in range(40):
            indices = torch.randperm(7, generator=generator)[:2]
            values = torch.rand(2, generator=generator)
            dense[step, n, indices] = values.double()
            means.add(step, values[None, None], indices[None, None])
    torch.testing.assert_close(means.means, dense.mean(1))
    empty = Means(2, 3)
    empty.add(0, torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ExciseError, match="step 1 has no features"):
        _ = empty.means


def test_the_score_by_hand() -> None:
    own, others = torch.rand(4, 9).double(), torch.rand(4, 9).double()
    made = score(own, others)
    for t in range(4):
        for i in range(9):
            share = [float(mu[t, i]) / (sum(float(v) for v in mu[t]) + 1e-8) for mu in (own, others)]
            assert float(made[t, i]) == pytest.approx(share[0] - share[1], abs=1e-12)
    assert score(torch.zeros(1, 3), torch.zeros(1, 3)).tolist() == [[0, 0, 0]]


def of_percentile(scores: torch.Tensor, percentile: float) -> torch.Tensor:
    """SAEuron's published selection: scores above a percentile of the step's scores."""
    return torch.stack([row > row.quantile(percentile / 100) for row in scores])


@pytest.mark.parametrize(
    ("m", "percentile", "k"),
    [(20480, 99.999, 1), (20480, 99.995, 2), (20480, 99.99, 3), (20480, 99.0, 205), (1280, 99.0, 13), (1280, 98.0, 26),
     (1280, 95.0, 64), (1280, 99.5, 7), (1280, 99.8, 3), (1280, 99.9, 2)],
)  # fmt: skip
def test_a_count_is_what_a_percentile_leaves_of_an_saes_neurons(m: int, percentile: float, k: int) -> None:
    scores = torch.stack([torch.randperm(m, generator=torch.Generator().manual_seed(s)).double() for s in range(2)])
    assert torch.equal(select(scores, k), of_percentile(scores, percentile))
    for row, chosen in zip(scores, select(scores, k), strict=True):
        assert sorted(row[chosen].tolist()) == sorted(row.tolist())[-k:]


def test_neurons_that_score_the_same_as_the_next_are_left_out() -> None:
    scores = torch.tensor([[0.0, 3, 1, 2, 0], [0, 3, 1, 1, 0]])
    assert select(scores, 2).tolist() == [[False, True, False, True, False], [False, True, False, False, False]]
    assert torch.equal(select(scores, 2), of_percentile(scores, 70))


def test_a_count_must_leave_some_neurons_and_find_some() -> None:
    for k in (0, 5, 6):
        with pytest.raises(ExciseError, match=f"k is {k}; it lies from 1 to 4"):
            select(torch.rand(2, 5), k)
    with pytest.raises(ExciseError, match="no 2 neurons score higher"):
        select(torch.zeros(1, 5), 2)


def test_each_concept_gets_a_neuron_of_its_own() -> None:
    scores = [torch.tensor(row) for row in ([0.1, 0.9, 0.3], [0.2, 0.8, 0.5], [0.9, 0.95, 0.1])]
    assert assign(scores) == [1, 2, 0]
    with pytest.raises(ExciseError, match="more concepts than the 3 neurons"):
        assign([*scores, scores[0]])
