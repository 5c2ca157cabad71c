from __future__ import annotations

import math
from statistics import correlation
from typing import Any

import pytest
import torch

from excise.errors import ExciseError
from excise.sae.supervised import activity, concept_association, decorrelation, supervision


@pytest.fixture
def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "preactivations": torch.randn(12, 5, 9, generator=generator, dtype=torch.float64),
        "labels": torch.rand(12, 4, generator=generator) > 0.6,
        "assigned": torch.tensor([7, 0, 3, 8]),
        "groups": torch.tensor([0, 0, 1, 1]),
    }


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(batch: dict[str, Any], negatives: str) -> tuple[float, float, float]:
    """The three terms from the paper's formulas, in loops."""
    pre = batch["preactivations"].tolist()
    v = [[sum(max(0.0, patch[i]) for patch in sample) / 5 for i in batch["assigned"].tolist()] for sample in pre]
    terms = []
    for row, present in zip(v, batch["labels"].tolist(), strict=True):
        for value, is_there in zip(row, present, strict=True):
            if is_there:
                terms.append(-math.log(sigmoid(value)))
            elif negatives == "assigned":
                terms.append(-math.log(1 - sigmoid(value)))
    groups = batch["groups"].tolist()
    columns = list(zip(*v, strict=True))
    pairs = [correlation(columns[a], columns[b]) ** 2 for a in range(4) for b in range(4) if groups[a] != groups[b]]
    flat = [abs(x) for sample in pre for patch in sample for x in patch]
    return sum(terms) / len(terms), sum(pairs) / len(pairs), sum(flat) / len(flat)


@pytest.mark.parametrize("negatives", ["none", "assigned"])
def test_the_terms_are_the_papers_formulas(batch: dict[str, Any], negatives: Any) -> None:
    made = supervision(**batch, beta=3.0, eta=0.1, l1=0.01, negatives=negatives)
    association, apart, sparsity = by_hand(batch, negatives)
    assert [float(t) for t in made[1:]] == pytest.approx([association, apart, sparsity], rel=1e-9)
    assert float(made.total) == pytest.approx(3 * (association + 0.1 * apart) + 0.01 * sparsity, rel=1e-9)


def test_a_step_against_the_gradient_raises_what_is_present(batch: dict[str, Any]) -> None:
    pre = batch["preactivations"].requires_grad_()
    before = activity(pre, batch["assigned"])
    concept_association(before, batch["labels"], "assigned").backward()
    assert pre.grad is not None
    after = activity(pre - 10 * pre.grad, batch["assigned"])
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


def test_what_does_not_belong_together_is_refused(batch: dict[str, Any]) -> None:
    with pytest.raises(ExciseError, match="no sample of the batch has a labelled concept"):
        supervision(**{**batch, "labels": torch.zeros(12, 4, dtype=torch.bool)})
    with pytest.raises(ExciseError, match="do not belong together"):
        supervision(**{**batch, "assigned": torch.tensor([1])})
