from __future__ import annotations

import math
from statistics import correlation, fmean
from typing import Any

import pytest
import torch

from excise.app.training.labelled import PRESETS
from excise.errors import ExciseError
from excise.sae.supervised import Supervision, activity, concept_association, decorrelation, pooled, terms


@pytest.fixture
def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "preactivations": torch.randn(12, 5, 9, generator=generator, dtype=torch.float64),
        "labels": torch.rand(12, 4, generator=generator) > 0.6,
        "assigned": torch.tensor([7, 0, 3, 8]),
        "groups": torch.tensor([0, 0, 1, 1]),
    }


def supervised(**options: Any) -> Supervision:
    return Supervision(("a", "b", "c", "d"), (0, 0, 1, 1), (7, 0, 3, 8), **options)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(batch: dict[str, Any], negatives: str) -> tuple[float, float, float]:
    """The three terms from the paper's formulas, in loops."""
    pre = batch["preactivations"].tolist()
    v = [[sum(max(0.0, patch[i]) for patch in sample) / 5 for i in batch["assigned"].tolist()] for sample in pre]
    raw = [[sum(patch[i] for patch in sample) / 5 for i in batch["assigned"].tolist()] for sample in pre]
    there, absent = [], []
    for row, present in zip(v if negatives == "none" else raw, batch["labels"].tolist(), strict=True):
        for value, is_there in zip(row, present, strict=True):
            if is_there:
                there.append(-math.log(sigmoid(value)))
            else:
                absent.append(-math.log(1 - sigmoid(value)))
    association = {
        "none": fmean(there),
        "assigned": fmean(there + absent),
        "balanced": fmean(there) + fmean(absent),
    }[negatives]
    groups = batch["groups"].tolist()
    columns = list(zip(*v, strict=True))
    pairs = [correlation(columns[a], columns[b]) ** 2 for a in range(4) for b in range(4) if groups[a] != groups[b]]
    flat = [max(0.0, x) for sample in pre for patch in sample for x in patch]
    return association, sum(pairs) / len(pairs), sum(flat) / len(flat)


@pytest.mark.parametrize("negatives", ["none", "assigned", "balanced"])
def test_the_terms_are_the_papers_formulas(batch: dict[str, Any], negatives: Any) -> None:
    pre = batch["preactivations"]
    made = terms(pre[..., batch["assigned"]], pre.relu(), batch["labels"], supervised(negatives=negatives))
    association, apart, sparsity = by_hand(batch, negatives)
    assert [float(t) for t in made[1:]] == pytest.approx([association, apart, sparsity], rel=1e-9)
    assert float(made.total) == pytest.approx(3 * (association + 0.1 * apart) + 0.01 * sparsity, rel=1e-9)


@pytest.mark.parametrize("negatives", ["assigned", "balanced"])
def test_a_step_against_the_gradient_raises_what_is_present(batch: dict[str, Any], negatives: Any) -> None:
    pre = batch["preactivations"].requires_grad_()
    before = pooled(pre[..., batch["assigned"]], "mean")
    concept_association(before, batch["labels"], negatives).backward()
    assert pre.grad is not None
    after = pooled((pre - 10 * pre.grad)[..., batch["assigned"]], "mean")
    labels = batch["labels"]
    assert float((after - before)[labels].min()) >= 0
    assert float((after - before)[~labels].max()) <= 0
    untouched = [i for i in range(9) if i not in batch["assigned"].tolist()]
    assert not bool(pre.grad[..., untouched].any()), "latents that no concept owns are left to the SAE"


def test_latents_that_never_change_have_a_clean_gradient() -> None:
    v = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
    made = decorrelation(v + torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([0, 1, 1]))
    made.backward()
    assert float(made) == 0
    assert v.grad is not None
    assert bool(torch.isfinite(v.grad).all())
    assert float(decorrelation(torch.rand(4, 2), torch.tensor([0, 0]))) == 0


def test_a_batch_without_any_concept_teaches_nothing(batch: dict[str, Any]) -> None:
    nothing = torch.zeros(12, 4, dtype=torch.bool)
    assert float(concept_association(torch.rand(12, 4), nothing)) == 0


def test_g_sae_s_loss_is_cross_entropy_summed_over_concepts_in_each_vector(batch: dict[str, Any]) -> None:
    """With its preset: no other term, and no L1, although codes are given."""
    settings = PRESETS["g-sae"](4)
    pre, losses = batch["preactivations"], []
    for sample, labels in zip(pre.tolist(), batch["labels"].tolist(), strict=True):
        for vector in sample:
            own = [vector[i] for i in batch["assigned"].tolist()]
            losses.append(
                sum(
                    -math.log(sigmoid(value) if present else 1 - sigmoid(value))
                    for value, present in zip(own, labels, strict=True)
                )
            )
    made = terms(pre[..., batch["assigned"]], pre.relu(), batch["labels"], supervised(**settings))
    assert float(made.total) == pytest.approx(fmean(losses), rel=1e-9)
    assert PRESETS["saemnesia"](4) == {}


def test_a_maximum_instead_of_a_mean(batch: dict[str, Any]) -> None:
    own = batch["preactivations"][..., batch["assigned"]]
    wanted = [[max(0.0, *column) for column in zip(*sample, strict=True)] for sample in own.tolist()]
    assert activity(own, "max").tolist() == wanted


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"assigned": (1, 2, 3)}, "every concept needs a group and a latent"),
        ({"assigned": (1, 2, 3, 3)}, "two concepts have the same name or the same latent"),
        ({"concepts": ("a", "a", "b", "c")}, "two concepts have the same name"),
        ({"negatives": "some"}, 'negatives is "none", "assigned" or "balanced"'),
        ({"beta": -1}, "beta must be a number of at least 0"),
        ({"patience": 0}, "patience must be a whole number of at least 1"),
    ],
)
def test_an_impossible_supervision_is_refused(change: dict[str, Any], match: str) -> None:
    settings = supervised().to_json()
    assert Supervision.from_json(settings) == supervised()
    with pytest.raises(ExciseError, match=match):
        Supervision.from_json({**settings, **change})


def test_labels_that_do_not_do_are_refused() -> None:
    labels = torch.eye(4, dtype=torch.bool)
    supervised().check_labels(labels, 9)
    with pytest.raises(ExciseError, match="labels for 3 concepts, not for 4"):
        supervised().check_labels(labels[:, :3], 9)
    with pytest.raises(ExciseError, match="no sample shows 'd'"):
        supervised().check_labels(labels[:3], 9)
    with pytest.raises(ExciseError, match="latent 8 was assigned, but there are 8"):
        supervised().check_labels(labels, 8)
