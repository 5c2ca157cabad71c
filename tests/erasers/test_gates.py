from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from excise.erasers import Eraser, SAEEdit
from excise.erasers.edits.gated_sae import GatedSAEEdit
from excise.erasers.gates import WIDTH, attacking, passed
from excise.sae import SAEConfig, TopKSAE
from excise.sites import Site

LEVEL = torch.tensor([0.4, 0.5, 0.55, 2.0], dtype=torch.float64)
BOUND = torch.tensor(0.5, dtype=torch.float64)


@pytest.mark.parametrize("equal", [False, True])
def test_a_gate_passes_what_is_above_its_bound(equal: bool) -> None:
    value = torch.tensor([1.0, -2.0, 3.0, 4.0], dtype=torch.float64)
    expected = [
        v if (x >= 0.5 if equal else x > 0.5) else 0.0 for v, x in zip(value.tolist(), LEVEL.tolist(), strict=True)
    ]
    assert passed(value, LEVEL, BOUND, equal=equal).tolist() == expected


@pytest.mark.parametrize("gradient", ["exact", "hinge", "straight-through", "soft"])
def test_an_attack_changes_the_gradient_and_not_one_bit(gradient: Any) -> None:
    value = torch.tensor([1.0, -2.0, 3.0, 4.0], dtype=torch.float64, requires_grad=True)
    level = LEVEL.clone().requires_grad_()
    plain = passed(value, level, BOUND)
    with attacking(gradient) as gates:
        attacked = passed(value, level, BOUND)
    assert torch.equal(attacked, plain)
    by_value, by_level = torch.autograd.grad(attacked.sum(), (value, level), allow_unused=True)
    opened = (LEVEL > BOUND).double()
    if gradient == "straight-through":
        assert by_value.tolist() == [1.0] * 4 and by_level is None
    elif gradient == "soft":  # by finite differences of value * s((level - bound) / (WIDTH * bound))

        def smooth(v: Tensor, x: Tensor) -> Tensor:
            return v / (1 + torch.exp(-(x - BOUND) / (WIDTH * BOUND)))

        step = 1e-6
        for own, found in ((0, by_value), (1, by_level)):
            here = [value.detach(), LEVEL]
            up, down = ([each + sign * step * (n == own) for n, each in enumerate(here)] for sign in (1, -1))
            assert torch.allclose(found, (smooth(*up) - smooth(*down)) / (2 * step), atol=1e-6)
    else:
        assert torch.equal(by_value, opened) and by_level is None
    (excess,) = gates.excess
    assert float(excess) == pytest.approx(2.0 / 0.5 - 1)


def test_nothing_is_recorded_outside_an_attack_or_without_gradients() -> None:
    with attacking("soft") as gates, torch.no_grad():
        passed(LEVEL, LEVEL, BOUND)
    passed(LEVEL, LEVEL, BOUND)
    assert gates.excess == []


def edits(gate: Any) -> tuple[SAEEdit, TopKSAE]:
    torch.manual_seed(0)
    sae = TopKSAE(SAEConfig(d=8, m=16, k=4))
    edit = SAEEdit.from_sae(
        sae, Site("text_encoder", "layers.0", 8), [1, 2], gate=gate, lam=0.5, threshold=torch.full((2,), 0.05)
    )
    return edit, sae


@pytest.mark.parametrize("gate", ["whole", "threshold", "relu", "topk"])
def test_every_gate_of_an_sae_edit_can_be_attacked(gate: Any) -> None:
    """Within an attack, states in which the gate is closed have a gradient, and the edited states keep every bit."""
    edit, sae = edits(gate)
    h = (0.01 * torch.randn(1, 5, 8)).requires_grad_()
    plain = edit.apply(h, sae=sae)
    with attacking("straight-through") as gates:
        attacked = edit.apply(h, sae=sae)
    assert gates.excess and torch.equal(attacked, plain)
    (before,), (after,) = (
        torch.autograd.grad(states.square().sum(), h, retain_graph=True) for states in (plain, attacked)
    )
    assert not torch.equal(before, after)


def test_the_gate_of_a_prompts_change_can_be_attacked() -> None:
    edit, _ = edits("relu")
    gated = GatedSAEEdit(**{field.name: getattr(edit, field.name) for field in fields(edit)}, floor=1e6)
    h = torch.randn(1, 5, 8, requires_grad=True)
    assert torch.equal(gated.apply(h), h)
    with attacking("straight-through") as gates:
        attacked = gated.apply(h)
    assert torch.equal(attacked, h) and len(gates.excess) > 1
    (found,) = torch.autograd.grad(attacked.sum(), h)
    assert not torch.equal(found, torch.ones_like(found)), "the closed gate lets a gradient through"


def test_an_attack_reaches_the_gates_of_an_attached_eraser(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    ids = tiny_pipe.tokenizer("a gun", return_tensors="pt").input_ids
    with gun_eraser.attach(tiny_pipe), attacking("exact") as gates:
        tiny_pipe.text_encoder(ids)
    assert gates.excess
