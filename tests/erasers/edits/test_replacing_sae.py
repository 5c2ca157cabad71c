"""Moving states to others behind a neuron's gate: against loops, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from excise.erasers import Eraser, SAEEdit
from excise.erasers.artefact.hub import card
from excise.erasers.artefact.strength import in_words
from excise.erasers.edits.replacing_sae import ReplacingSAEEdit
from excise.erasers.gates import attacking
from excise.errors import ExciseError
from tests.erasers.edits.test_text_sae import SITE, sae, states

MOVES = torch.tensor([[1.0, -2.0, 0.5, 3.0, 0.0, 0.25], [0.0, 1.0, -1.0, 0.0, 2.0, 0.5]])


def plain(seed: int = 0, threshold: float = 0.8) -> SAEEdit:
    levels = {"threshold": torch.tensor([threshold, 2.0]), "typical": torch.tensor([5.0, 6.0])}
    return SAEEdit.from_sae(sae(seed), SITE, [7, 2], gate="whole", lam=3.0, lead=1, **levels)


def edit(seed: int = 0, **change: Any) -> ReplacingSAEEdit:
    return replace(ReplacingSAEEdit.of(plain(seed), MOVES, "apple"), **change)


def by_hand(seed: int, h: Tensor, amount: float) -> Tensor:
    """What is subtracted, with loops, in float64."""
    model = sae(seed)
    W_enc, b_enc, b_pre = (t.detach().double() for t in (model.W_enc, model.b_enc, model.b_pre))
    taken = torch.zeros_like(h, dtype=torch.float64)
    for b in range(len(h)):
        for n, (i, threshold, typical) in enumerate(((7, 0.8, 5.0), (2, 2.0, 6.0))):
            a = [max(float(W_enc[i] @ (x.double() - b_pre) + b_enc[i]), 0.0) for x in h[b]]
            a[0] = 0.0
            if max(a) > threshold:
                gain = max(1.0, typical / max(a))
                for t, code in enumerate(a):
                    taken[b, t] += amount * gain * code * MOVES[n].double()
    return taken


@given(seed=st.integers(0, 1000), lam=st.floats(0.1, 2), strength=st.floats(0.1, 2))
@settings(max_examples=30, deadline=None)
def test_it_subtracts_each_code_times_its_move(seed: int, lam: float, strength: float) -> None:
    h = states(seed)
    delta = edit(seed, lam=lam).delta(h, strength)
    assert delta is not None
    torch.testing.assert_close(delta.double(), by_hand(seed, h, lam * strength), atol=1e-4, rtol=1e-4)


def test_strength_1_is_the_whole_way_whatever_the_strength_of_the_edit_it_is_made_of() -> None:
    assert (plain().lam, edit().lam) == (3.0, 1.0)
    assert edit().neurons == plain().neurons
    assert torch.equal(edit().codes(states()), plain().codes(states()))


def test_a_prompt_that_opens_no_gate_keeps_every_bit() -> None:
    shut = torch.tensor([9e9, 9e9])
    assert torch.equal(edit(threshold=shut).apply(states()), states())
    assert torch.equal(edit().apply(states())[:, 0], states()[:, 0]), "the first state is left alone"
    assert edit().delta(states(), branch="unconditional") is None


SHUT = {"threshold": torch.tensor([30.0, 40.0]), "typical": torch.tensor([5.0, 6.0])}
"""Levels that close both gates, so that a search has no gradient of its own."""


def opened(h: Tensor, how: str) -> Tensor:
    """h - λ Σ_i s_i g_i ReLU(a_i) u_i with loops, in float64: s_i is 1, or a sigmoid of how far the gate is open."""
    model = sae()
    W_enc, b_enc, b_pre = (t.detach().double() for t in (model.W_enc, model.b_enc, model.b_pre))
    out = []
    for states_of in h:
        taken = [torch.zeros(6, dtype=torch.float64) for _ in states_of]
        for n, i in enumerate((7, 2)):
            a = [(W_enc[i] @ (x - b_pre) + b_enc[i]).clamp(min=0) * (t > 0) for t, x in enumerate(states_of)]
            loudest, bound = torch.stack(a).max(), float(SHUT["threshold"][n])
            gain = (float(SHUT["typical"][n]) / loudest.clamp(min=1e-6)).clamp(min=1)
            share = torch.sigmoid((loudest - bound) / (0.1 * bound)) if how == "soft" else 1.0
            taken = [one + 0.75 * share * gain * code * MOVES[n].double() for one, code in zip(taken, a, strict=True)]
        out.append(torch.stack([x - one for x, one in zip(states_of, taken, strict=True)]))
    return torch.stack(out)


@pytest.mark.parametrize("how", ["straight-through", "soft"])
def test_an_attack_has_the_gradient_of_the_move_behind_a_closed_gate(how: Any) -> None:
    """By finite differences of what an open gate, or a sigmoid in its place, would make of the states."""
    own, way = edit(lam=0.75, **SHUT), torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(5)).double()
    h = states().double().requires_grad_()
    assert own.delta(h) is not None and torch.equal(own.apply(h), h)
    with attacking(how) as gates:
        made = own.apply(h)
    assert torch.equal(made, h) and gates.excess, "to the bit what is drawn"
    (found,) = torch.autograd.grad((made * way).sum(), h)
    (exact,) = torch.autograd.grad((own.apply(h) * way).sum(), h)
    assert torch.equal(exact, way), "the gate's own gradient knows nothing of the move"
    with torch.no_grad():
        for b, t, d in ((0, 1, 2), (1, 3, 0), (2, 4, 5), (0, 0, 1), (1, 2, 4)):
            step = torch.zeros_like(h)
            step[b, t, d] = 1e-6
            slope = ((opened(h + step, how) - opened(h - step, how)) * way).sum() / 2e-6
            assert float(found[b, t, d]) == pytest.approx(float(slope), rel=1e-4, abs=1e-4)


def test_the_gradient_through_an_open_gate_is_that_of_the_move() -> None:
    h = states().double()
    levels = {"threshold": torch.tensor([0.0, 0.0]), "typical": torch.tensor([5.0, 6.0])}
    own = edit(lam=0.75, **levels)
    assert bool((own.apply(h) != h).any())
    assert torch.autograd.gradcheck(own.apply, (h.requires_grad_(),), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moves": MOVES[:1]}, r"moves has shape \(1, 6\), not \(2, 6\)"),
        ({"moves": MOVES * float("nan")}, "moves holds values that are not finite"),
        ({"source": "concept", "concept_codes": torch.zeros(5, 2)}, "source=concept cannot replace"),
        ({"replace_with": ""}, "replace_with cannot be ''; it is a word or a short phrase"),
        ({"replace_with": "a](http://x)"}, "it is a word or a short phrase"),
        ({"replace_with": "two\nlines"}, "it is a word or a short phrase"),
        ({"replace_with": "word " * 13 + "end"}, "it is a word or a short phrase"),
    ],
)
def test_what_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ExciseError, match=message):
        edit(**change)


def eraser(name: str, *edits: Any) -> Eraser:
    return Eraser(edits, name, "gun", made_for={}, canary=("a gun",), canary_shift=0.5)


def test_it_is_saved(tmp_path: Path) -> None:
    made = eraser("gun", edit(lam=0.75))
    made.save(tmp_path / "gun")
    loaded = Eraser.load(tmp_path / "gun")
    assert loaded.digest == made.digest
    (again,) = loaded.edits
    assert isinstance(again, ReplacingSAEEdit) and (again.lam, again.replace_with) == (0.75, "apple")
    assert torch.equal(again.moves, MOVES)
    assert torch.equal(again.apply(states()), edit(lam=0.75).apply(states()))
    text = (tmp_path / "gun" / "eraser.json").read_text()
    assert '"kind": "sae-replacing"' in text and "concept_codes" not in text


def test_a_card_says_what_it_does() -> None:
    text = card(eraser("gun", edit()))
    assert (
        "by moving its text encoder's states, where a neuron of a sparse autoencoder fires, to those of “apple”" in text
    )
    assert "turning down" not in text.partition("##")[0]


def test_its_strength_in_words() -> None:
    created = {"config": {"lam": 1.0, "unit": "concept", "source": "prompt", "replace_with": "apple"}}
    assert in_words(1.0, "site", created, {"carried": 0.5}) == "strength 1 (1 is to “apple”)"
    created["config"]["replace_with"] = "two\nlines"
    assert "two" not in in_words(1.0, "site", created, {"carried": 0.5}), "a file's text is not printed"
