from __future__ import annotations

import math

import pytest
import torch

from excise.errors import ExciseError
from excise.methods.sae.calibrate import calibrate


def one(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)[..., None]


def test_the_rule_by_hand() -> None:
    concept, quiet = one([0.0, 10.0, 8.0], [1.0, 12.0, 9.0]), one([0.5, 2.0, -1.0])
    found = calibrate(concept, concept > 7, quiet, margin=0.1)
    assert found.quiet.item() == 2
    assert found.typical.item() == 10
    assert found.floor.item() == 8
    assert found.threshold.item() == pytest.approx(2 + 0.1 * 8)
    assert found.separable.item()
    assert found.agreement.item() == 1


def test_it_gives_up_no_row_that_topk_edits() -> None:
    concept, quiet = one([0.0, 100.0, 3.0]), one([2.0])
    found = calibrate(concept, concept > 2.5, quiet, margin=0.5)
    assert found.threshold.item() == pytest.approx(2.5)
    assert found.agreement.item() == 1


def test_quiet_prompts_stay_silent_and_it_is_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        concept, quiet = torch.randn(4, 6, 3, generator=generator) * 5, torch.randn(5, 6, 3, generator=generator)
        found = calibrate(concept, concept > 1, quiet, margin=0.2)
        assert not (quiet > found.threshold).any()
        assert (found.threshold >= 0).all()


def test_at_most_a_hundredth_of_benign_prompts_may_be_louder() -> None:
    generator = torch.Generator().manual_seed(1)
    concept, quiet = one([0.0, 50.0]), one([1.0, 2.0])
    for count in (1, 99, 100, 250, 300):
        benign = torch.rand(count, 4, 1, generator=generator) * 30
        found = calibrate(concept, concept > 49, quiet, 0.0, benign)
        louder = sum(bool((row > found.threshold).any()) for row in benign)
        assert louder == count // 100
        assert found.threshold.item() == found.quiet.item()
        assert found.threshold.item() in benign.amax(1).flatten().tolist(), "no higher than it must be"
    assert calibrate(concept, concept > 49, quiet, 0.0, benign / 100).threshold.item() == 2


def test_silent_prompts_count_as_zero_however_far_below_it_they_are() -> None:
    found = calibrate(one([0.0, 10.0]), one([0.0, 10.0]) > 5, one([-3.0, -2.0]), margin=0.1)
    assert found.quiet.item() == -2
    assert found.threshold.item() == pytest.approx(1.0)
    assert found.separable.item()
    assert not calibrate(one([-1.0]), one([-1.0]) > 5, one([-3.0])).separable.item(), "louder, and silent all the same"


def test_a_neuron_no_stronger_on_the_concept_is_marked() -> None:
    found = calibrate(one([1.0, 2.0]), one([1.0, 2.0]) > 5, one([3.0]))
    assert not found.separable.item()
    assert found.threshold.item() == 3
    assert math.isnan(found.floor.item())


def test_bad_input_is_refused() -> None:
    with pytest.raises(ExciseError, match="between 0 and 1"):
        calibrate(one([1.0]), one([1.0]) > 0, one([1.0]), margin=2)
    with pytest.raises(ExciseError, match="lacks one side"):
        calibrate(one([1.0]), one([1.0]) > 0, torch.zeros(0, 1, 1))
