from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from excise.erasers import Eraser
from excise.erasers.edits.merged_sae import MergedSAEEdit, can_be_merged
from excise.erasers.edits.text_sae import SAEEdit
from excise.erasers.gates import attacking
from excise.errors import ExciseError
from tests.erasers.edits.test_text_sae import SITE, sae, states

LAMS = (0.5, 2.0, 1.25)


def alone(seed: int = 0, quiet: bool = False) -> list[SAEEdit]:
    """Edits of one neuron each; `quiet` ones never open."""
    levels = [{"threshold": torch.tensor([9e9 if quiet else t]), "typical": torch.tensor([5.0])} for t in (0.8, 0, 2)]
    return [
        SAEEdit.from_sae(sae(seed), SITE, [neuron], gate="whole", lam=lam, lead=1, **level)
        for neuron, lam, level in zip((7, 2, 9), LAMS, levels, strict=True)
    ]


def summed(edits: list[SAEEdit], h: Tensor, **how: Any) -> Tensor:
    """What edits that are attached separately subtract together."""
    return sum((delta for edit in edits if (delta := edit.delta(h, **how)) is not None), torch.zeros_like(h))


@given(seed=st.integers(0, 1000), strength=st.floats(0.1, 2))
@settings(max_examples=30, deadline=None)
def test_it_subtracts_what_the_edits_do_together(seed: int, strength: float) -> None:
    edits, h = alone(seed), states(seed)
    delta = MergedSAEEdit.of(edits).delta(h, strength)
    expected = summed(edits, h, strength=strength)
    assert torch.allclose(torch.zeros_like(h) if delta is None else delta, expected, atol=1e-5)


@pytest.mark.parametrize("uncond", ["none", "same", "flip"])
def test_the_unconditional_branch(uncond: Any) -> None:
    edits = [replace(edit, uncond=uncond) for edit in alone()]
    delta = MergedSAEEdit.of(edits).delta(states(), branch="unconditional")
    assert (delta is None) == (uncond == "none")
    if delta is not None:
        assert torch.allclose(delta, summed(edits, states(), branch="unconditional"), atol=1e-5)


def test_a_prompt_that_opens_no_gate_keeps_every_bit() -> None:
    quiet, h = alone(quiet=True), states()
    assert MergedSAEEdit.of(quiet).delta(h) is None
    one = MergedSAEEdit.of([*quiet[:2], alone()[2]])
    assert torch.allclose(one.apply(h), alone()[2].apply(h), atol=1e-6)
    assert torch.equal(one.apply(h)[:, 0], h[:, 0])


def test_neurons_are_in_order_whatever_the_order_of_the_edits() -> None:
    one, other = MergedSAEEdit.of(alone()), MergedSAEEdit.of(alone()[::-1])
    assert one.neurons == [2, 7, 9]
    assert all(torch.equal(one.tensors()[name], tensor) for name, tensor in other.tensors().items())
    again = MergedSAEEdit.of([MergedSAEEdit.of(alone()[:2]), alone()[2]])
    assert all(torch.equal(one.tensors()[name], tensor) for name, tensor in again.tensors().items())


def test_a_shared_neuron_is_turned_down_once() -> None:
    first = alone()[0]
    weaker = replace(first, lam=0.25, threshold=torch.tensor([-1.0]), typical=torch.tensor([7.0]))
    both = MergedSAEEdit.of([first, weaker])
    assert both.neurons == [7]
    assert both.coefficient == ("lambda", 0.5)
    assert (both.lams.item(), both.threshold.item(), both.typical.item()) == (0.5, -1.0, 7.0)
    assert torch.equal(both.W_dec, first.W_dec) and torch.equal(both.b_enc, first.b_enc)


def test_a_merged_edit_keeps_the_common_strength() -> None:
    merged = replace(MergedSAEEdit.of(alone()), lam=2.0)
    assert MergedSAEEdit.of([merged]).lams.tolist() == [2 * LAMS[1], 2 * LAMS[0], 2 * LAMS[2]]


def test_an_attack_has_the_gradient_of_closed_gates_too() -> None:
    same_gradient_behind_closed_gates(alone(quiet=True))


def same_gradient_behind_closed_gates(edits: Any) -> None:
    """Merged, edits whose gates are closed have the gradient that they have one after another."""
    gradients = []
    for delta in (MergedSAEEdit.of(edits).delta, lambda h: summed(edits, h)):
        h = states().requires_grad_()
        with attacking("straight-through"):
            made = delta(h)
        assert made is not None
        assert not made.any()
        (made * torch.arange(6.0)).sum().backward()
        gradients.append(h.grad)
    assert gradients[0] is not None and gradients[0].any()
    assert torch.allclose(*gradients, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lead": 0}, "different `lead` or `uncond`"),
        ({"uncond": "same"}, "different `lead` or `uncond`"),
        ({"b_pre": torch.zeros(6)}, "different SAEs"),
        ({"sae_digest": "another"}, "different SAEs"),
    ],
)
def test_edits_that_are_not_alike(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ExciseError, match=message):
        MergedSAEEdit.of([alone()[0], replace(alone()[1], **change)])


def test_what_can_be_merged() -> None:
    edit = alone()[0]
    assert can_be_merged(edit) and can_be_merged(MergedSAEEdit.of([edit]))
    assert not can_be_merged(replace(edit, gate="threshold"))
    assert not can_be_merged(replace(edit, source="concept", concept_codes=torch.zeros(5, 1)))
    assert not can_be_merged(object())


@pytest.mark.parametrize("lams", [[1.0, 1.0], [-1.0, 1.0, 1.0], [float("nan"), 1.0, 1.0], [float("inf"), 1.0, 1.0]])
def test_impossible_strengths(lams: list[float]) -> None:
    with pytest.raises(ExciseError, match=r"lams (must be 3 numbers of at least 0|holds values that are not finite)"):
        replace(MergedSAEEdit.of(alone()), lams=torch.tensor(lams))


def test_another_gate() -> None:
    with pytest.raises(ExciseError, match="gate=threshold, source=prompt cannot be merged"):
        replace(MergedSAEEdit.of(alone()), gate="threshold")


def test_it_is_saved(tmp_path: Path) -> None:
    eraser = Eraser((MergedSAEEdit.of(alone()),), "policy", "gun, cat", made_for={}, canary=("a gun", "a cat"))
    eraser.save(tmp_path / "policy")
    loaded = Eraser.load(tmp_path / "policy")
    assert loaded.digest == eraser.digest
    (edit,) = loaded.edits
    assert isinstance(edit, MergedSAEEdit) and edit.lams.tolist() == [LAMS[1], LAMS[0], LAMS[2]]
    assert torch.equal(edit.apply(states()), eraser.edits[0].apply(states()))  # type: ignore[union-attr]


def test_each_neuron_may_have_as_many_canary_prompts_as_an_eraser() -> None:
    def eraser(prompts: int) -> Eraser:
        canary = tuple(f"prompt {n}" for n in range(prompts))
        return Eraser((MergedSAEEdit.of(alone()),), "policy", "all", made_for={}, canary=canary)

    assert len(eraser(3 * 13).canary) == 39
    with pytest.raises(ExciseError, match=r"has 40 canary prompts .* at most 39"):
        eraser(40)
