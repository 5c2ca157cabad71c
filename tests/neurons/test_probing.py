"""Sparse probing and targeted probe perturbation, against scikit-learn and against counting by hand."""

from __future__ import annotations

import pytest
import torch

from excise.errors import ExciseError
from excise.neurons.probing import RIDGE, Prompts, most_different, perturbation, probe, sparse_probing


def test_the_probe_is_scikit_learns_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.2, 1.0])
    present = x[:, 0] + torch.randn(60, generator=generator) > 0
    ours = probe(x, present)
    theirs = linear_model.LogisticRegression(C=1 / (RIDGE * 60), tol=1e-10, max_iter=1000)
    theirs.fit(((x - x.mean(0)) / x.std(0, correction=0)).numpy(), present.numpy())
    assert ours.weight.tolist() == pytest.approx(theirs.coef_[0].tolist(), rel=1e-4)
    assert float(ours.bias) == pytest.approx(float(theirs.intercept_[0]), rel=1e-4)


def test_a_constant_feature_and_separable_sides_are_no_trouble() -> None:
    x = torch.tensor([[0.0, 7.0], [0.0, 7.0], [1.0, 7.0], [1.0, 7.0]])
    present = torch.tensor([False, False, True, True])
    assert probe(x, present).accuracy(x, present) == 1


def test_the_most_different_neurons_by_hand() -> None:
    z = torch.tensor([[3.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 9.0, 1.0], [0.0, 9.0, 0.0]])
    present = torch.tensor([True, True, False, False])
    assert most_different(z, present, 2).tolist() == [1, 0]
    assert len(most_different(z, present, 9)) == 3


def test_sparse_probing_chooses_without_what_it_is_asked_on() -> None:
    generator = torch.Generator().manual_seed(0)
    present = torch.arange(80) % 2 == 0
    fold = torch.arange(80) // 2 % 4
    z = torch.rand(80, 30, generator=generator)
    planted = z.clone()
    planted[:, 7] = present * 2.0 + 0.1 * z[:, 7]
    assert sparse_probing(planted, present, fold) == 1
    # Of noise nothing is known; chosen on the prompts it is asked on, the best of 30 would seem to know something.
    assert sparse_probing(z, present, fold) < 0.65


def world(split: bool) -> tuple[list[Prompts], torch.Tensor]:
    """Three concepts along axes of their own; with `split`, each is two neurons' that take turns."""
    generator = torch.Generator().manual_seed(0)
    concepts = []
    decoder = torch.cat([torch.eye(3), torch.eye(3)])
    for c in range(3):
        present = torch.arange(40) % 2 == 0
        x = torch.rand(40, 3, generator=generator)
        x[:, c] = present * 4.0
        z = torch.zeros(40, 6)
        turn = torch.arange(40) // 2 % 2 if split else torch.zeros(40, dtype=torch.long)
        z[torch.arange(40), c + 3 * turn] = x[:, c]
        concepts.append(Prompts(x, z, present, torch.arange(40) // 4 % 5))
    return concepts, decoder


def test_a_clean_neuron_takes_its_own_probe_and_no_other() -> None:
    concepts, decoder = world(split=False)
    for own in perturbation(concepts, decoder):
        assert own.target == 0.5
        assert own.others == 0


def test_a_split_concept_needs_both_its_neurons() -> None:
    concepts, decoder = world(split=True)
    one = [own.value for own in perturbation(concepts, decoder, n=1)]
    two = [own.value for own in perturbation(concepts, decoder, n=2)]
    assert max(one) < 0.5
    assert two == [0.5] * 3


def test_the_definition_by_hand() -> None:
    concepts, decoder = world(split=True)
    probes = [probe(own.x[own.fold != 0], own.present[own.fold != 0]) for own in concepts]

    def accuracy(j: int, c: int | None) -> float:
        """A_jc, the prompts one after the other; c None: nothing taken out."""
        right = []
        for x, z, present, fold in zip(
            concepts[j].x, concepts[j].z, concepts[j].present, concepts[j].fold, strict=True
        ):
            if fold == 0:
                state = x.clone()
                if c is not None:
                    state = state - z[taken[c]] * decoder[taken[c]]
                right.append(probes[j].accuracy(state[None], present[None]))
        return sum(right) / len(right)

    taken = [int(most_different(own.z[own.fold != 0], own.present[own.fold != 0], 1)[0]) for own in concepts]
    for c, own in enumerate(perturbation(concepts, decoder)):
        assert own.target == pytest.approx(accuracy(c, None) - accuracy(c, c))
        assert own.others == pytest.approx(sum(accuracy(j, None) - accuracy(j, c) for j in range(3) if j != c) / 2)


def test_one_side_or_one_concept_is_refused() -> None:
    concepts, decoder = world(split=False)
    with pytest.raises(ExciseError, match="2 concepts"):
        perturbation(concepts[:1], decoder)
    with pytest.raises(ExciseError, match="with the concept and prompts without"):
        probe(torch.rand(4, 2), torch.ones(4, dtype=torch.bool))
