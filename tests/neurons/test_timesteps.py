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


def test_the_papers_percentiles_leave_one_and_three_of_its_neurons() -> None:
    scores = torch.stack([torch.randperm(20480, generator=torch.Generator().manual_seed(s)).double() for s in range(2)])
    assert select(scores, 99.999).sum(1).tolist() == [1, 1]
    assert select(scores, 99.99).sum(1).tolist() == [3, 3]
    assert bool(select(scores, 99.999)[0, int(scores[0].argmax())])
    with pytest.raises(ExciseError, match="percentile is 100"):
        select(scores, 100)
    with pytest.raises(ExciseError, match="no neuron scores above"):
        select(torch.zeros(1, 5), 50)


def test_each_concept_gets_a_neuron_of_its_own() -> None:
    scores = [torch.tensor(row) for row in ([0.1, 0.9, 0.3], [0.2, 0.8, 0.5], [0.9, 0.95, 0.1])]
    assert assign(scores) == [1, 2, 0]
    with pytest.raises(ExciseError, match="more concepts than the 3 neurons"):
        assign([*scores, scores[0]])
