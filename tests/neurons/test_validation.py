from __future__ import annotations

import itertools

import pytest
import torch

from excise.errors import ExciseError
from excise.neurons import PromptCodes, top_tokens
from excise.neurons.identification import identify
from excise.neurons.validation import activations, auroc, folds, permutation_null, validate


def toy(pairs: int = 20, m: int = 12, seed: int = 0, share: float = 1.0) -> tuple[PromptCodes, PromptCodes]:
    """Neuron 0 fires on (a share of) concept prompts, 1 on all, the others at random; one code a token, 3 tokens."""
    g = torch.Generator().manual_seed(seed)
    sides = []
    for concept in (True, False):
        noise = torch.randint(2, m, (pairs, 1, 1), generator=g)
        fires = torch.rand(pairs, 1, 1, generator=g) < share
        first = torch.where(fires, torch.zeros_like(noise), noise) if concept else noise
        indices = torch.cat([first, torch.ones_like(noise), noise], 1)
        values = torch.rand(pairs, 3, 1, generator=g) + 0.5
        sides.append(PromptCodes(values, indices, torch.ones(pairs, 3, dtype=torch.bool), m))
    return sides[0], sides[1]


TEMPLATES = [f"form {i % 7}" for i in range(20)]


def couples(positive: list[float], negative: list[float]) -> float:
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in positive for b in negative)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_counts_couples_in_order(seed):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randint(0, 4, (7, 3), generator=g).float(), torch.randint(0, 4, (5, 3), generator=g).float()
    expected = [couples(a[:, i].tolist(), b[:, i].tolist()) / 35 for i in range(3)]
    assert auroc(a, b).tolist() == pytest.approx(expected)
    assert auroc(b, a).tolist() == pytest.approx([1 - e for e in expected])


def test_activations_are_the_largest_scored_code():
    concept, _ = toy(4)
    scored = torch.tensor([[True, False, True]] * 4)
    found = activations(concept._replace(scored=scored))
    for p, i in itertools.product(range(4), range(12)):
        codes = [float(concept.values[p, t, 0]) for t in (0, 2) if int(concept.indices[p, t, 0]) == i]
        assert float(found[p, i]) == pytest.approx(max(codes, default=0.0))


def test_folds_keep_templates_together_and_even():
    fold = folds(TEMPLATES, 3)
    for a, b in itertools.combinations(range(20), 2):
        assert TEMPLATES[a] != TEMPLATES[b] or fold[a] == fold[b]
    assert fold.bincount().tolist() == pytest.approx([7, 7, 6], abs=2)
    assert folds(["a"] * 4 + ["b", "c", "d", "e"], 2).bincount().tolist() == [4, 4]
    assert folds([""] * 10, 5).bincount().tolist() == [2] * 5
    assert len(folds(["a", "b"], 5).unique()) == 2
    with pytest.raises(ExciseError, match="one template"):
        folds(["a"] * 5)


def test_permutation_null_against_all_swaps_by_hand():
    """4 pairs in 2 folds, pairs 0 and 1 bound together: 8 swaps, each AUROC counted couple by couple within folds."""
    g = torch.Generator().manual_seed(0)
    c, d = torch.randint(0, 5, (4, 3), generator=g).float(), torch.randint(0, 5, (4, 3), generator=g).float()
    fold, groups = torch.tensor([0, 0, 0, 1]), ["a", "a", "b", "c"]

    def statistic(swap: tuple[bool, ...]) -> list[float]:
        left = [d[p] if swap[p] else c[p] for p in range(4)]
        right = [c[p] if swap[p] else d[p] for p in range(4)]
        area = [0.0] * 3
        for members in ([0, 1, 2], [3]):
            for i in range(3):
                area[i] += couples([float(left[p][i]) for p in members], [float(right[p][i]) for p in members])
        return [a / 10 for a in area]

    swaps = [(x, x, y, z) for x, y, z in itertools.product((False, True), repeat=3)]
    expected = [max(statistic(s)) for s in swaps]
    observed, null = permutation_null(c, d, fold, groups, 4000, seed=1)
    assert observed.tolist() == pytest.approx(statistic((False,) * 4))
    for value in {round(e, 6) for e in expected}:
        share = sum(abs(e - value) < 1e-6 for e in expected) / 8
        assert float(((null - value).abs() < 1e-6).double().mean()) == pytest.approx(share, abs=0.03)


def test_p_values_are_honest_where_nothing_is_to_be_found():
    best = []
    for seed in range(120):
        g = torch.Generator().manual_seed(seed)
        c, d = torch.rand(12, 15, generator=g), torch.rand(12, 15, generator=g)
        observed, null = permutation_null(c, d, torch.arange(12) % 3, range(12), 99, seed)
        best.append((1 + int((null >= observed.max()).sum())) / 100)
    assert sum(p <= 0.1 for p in best) / 120 == pytest.approx(0.1, abs=0.08)
    assert sum(best) / 120 == pytest.approx(0.5, abs=0.12)


def test_a_true_neuron_and_a_chance_one():
    concept, deconcept = toy()
    concept.indices[3, 2] = 11
    concept.values[3, 2] = 9.0
    deconcept.indices[deconcept.indices == 11] = 10
    concept.indices[torch.arange(20) != 3] = concept.indices[torch.arange(20) != 3].clamp(max=10)
    ranking = identify(concept, deconcept)
    found = {v.index: v for v in validate(concept, deconcept, TEMPLATES, ranking, controls=deconcept)}
    assert found[0].auroc == 1.0
    assert found[0].selected == 1.0
    assert found[0].p_value < 0.01
    assert found[0].auroc_controls == 1.0
    assert found[0].control_share == 0.0
    assert not found[0].structural
    assert found[11].p_value > 0.5
    assert found[11].auroc is None or found[11].auroc < 0.7


def test_held_out_means_chosen_without_the_fold():
    """A neuron that fires in one template alone is never chosen by the folds without it."""
    concept, deconcept = toy()
    concept.indices[torch.tensor([t == "form 0" for t in TEMPLATES]), 2] = 11
    others = torch.tensor([t != "form 0" for t in TEMPLATES])
    concept.indices[others] = concept.indices[others].clamp(max=10)
    deconcept.indices[:] = deconcept.indices.clamp(max=10)
    ranking = identify(concept, deconcept)
    found = next(v for v in validate(concept, deconcept, TEMPLATES, ranking, n_folds=7) if v.index == 11)
    assert found.selected == pytest.approx(6 / 7)
    assert found.auroc == 0.5  # it is silent in every fold that did not choose it
    assert found.auroc_controls is None
    assert found.control_share is None


def test_structural_neurons_fire_on_controls():
    concept, deconcept = toy()
    ranking = identify(concept, deconcept)
    loud = validate(concept, deconcept, TEMPLATES, ranking, controls=concept, top=1)[0]
    assert loud.structural
    assert loud.control_share == 1.0


def test_bound_pairs_make_the_null_wider():
    concept, deconcept = toy()
    ranking = identify(concept, deconcept)
    free = validate(concept, deconcept, TEMPLATES, ranking, top=1)[0]
    bound = validate(concept, deconcept, TEMPLATES, ranking, top=1, groups=["all"] * 20)[0]
    assert free.p_value < 0.01
    assert bound.p_value == pytest.approx(0.5, abs=0.1)


def test_same_seed_same_answer():
    concept, deconcept = toy(share=0.6)
    ranking = identify(concept, deconcept)
    assert validate(concept, deconcept, TEMPLATES, ranking) == validate(concept, deconcept, TEMPLATES, ranking)


def test_top_tokens():
    codes = PromptCodes(
        torch.tensor([[[1.0], [2.0], [5.0]], [[3.0], [0.0], [4.0]]]),
        torch.tensor([[[7], [7], [7]], [[7], [7], [2]]]),
        torch.tensor([[True, True, False], [True, True, True]]),
        8,
    )
    uses = top_tokens(codes, [["gun", "and", "pad"], ["gun", "a", "cat"]], 7)
    assert [(u.token, u.count, u.maximum, u.mean) for u in uses] == [("gun", 2, 3.0, 2.0), ("and", 1, 2.0, 2.0)]
    assert top_tokens(codes, [["gun"] * 3] * 2, 5) == ()


def test_bad_input():
    concept, deconcept = toy()
    ranking = identify(concept, deconcept)
    with pytest.raises(ExciseError, match="differ in number"):
        validate(concept, deconcept, TEMPLATES[:-1], ranking)
    with pytest.raises(ExciseError, match="2 folds"):
        validate(concept, deconcept, TEMPLATES, ranking, n_folds=1)
    with pytest.raises(ExciseError, match="both sides"):
        auroc(torch.zeros(0, 3), torch.zeros(2, 3))


def test_a_p_value_counts_what_was_observed_among_the_draws():
    """With n draws of the null none can be below 1 / (n + 1)."""
    concept, deconcept = toy()
    ranking = identify(concept, deconcept)
    for draws in (9, 99):
        first = validate(concept, deconcept, TEMPLATES, ranking, top=1, permutations=draws)[0]
        assert (first.index, first.p_value) == (0, 1 / (draws + 1))
