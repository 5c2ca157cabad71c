"""Merged edits in which some neurons move states: against loops, alone and attached, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import excise
from excise import reference
from excise.bench.canvas.suite import Canvas
from excise.erasers import Eraser, merge, verify
from excise.erasers.artefact.hub import card
from excise.erasers.edits.merged_sae import MergedReplacingEdit, MergedSAEEdit, can_be_merged
from excise.erasers.edits.replacing_sae import ReplacingSAEEdit
from excise.erasers.edits.text_sae import SAEEdit
from excise.errors import ExciseError
from excise.sae import load
from tests.erasers.edits.test_merged_sae import same_gradient_behind_closed_gates, summed
from tests.erasers.edits.test_text_sae import SITE, sae, states

LEAD = 1


def part(neurons: list[int], word: str = "", seed: int = 0, lam: float = 1.0, **levels: float) -> SAEEdit:
    """An edit of these neurons, with other moves for other words and neurons."""
    given = {"threshold": 0.8, "typical": 5.0, **levels}
    rows = {name: torch.full((len(neurons),), level) for name, level in given.items()}
    plain = SAEEdit.from_sae(sae(seed), SITE, neurons, gate="whole", lam=lam, lead=LEAD, **rows)
    if not word:
        return plain
    generator = torch.Generator().manual_seed(sum(map(ord, word)) + sum(neurons))
    moves = torch.randn(len(neurons), 6, generator=generator)
    return replace(ReplacingSAEEdit.of(plain, moves, word), lam=lam)


def apart(seed: int = 0) -> list[SAEEdit]:
    """Edits without a neuron in common."""
    return [
        part([7], seed=seed, lam=0.5),
        part([2, 11], "apple", seed, lam=1.25, threshold=0.2),
        part([9], "nothing", seed, lam=0.75, threshold=0.0, typical=4.0),
        part([4], seed=seed, lam=2.0, threshold=1.5),
    ]


def shut() -> list[SAEEdit]:
    """The same with gates that nothing opens."""
    return [replace(edit, threshold=torch.full_like(edit.threshold, 9e9)) for edit in apart()]


def shared(seed: int = 0) -> list[SAEEdit]:
    """Edits with neurons in common: 7 is turned down twice, 2 is turned down and moved to two words, 9 is turned down
    first."""
    return [
        part([7, 9], seed=seed, lam=0.5, typical=9.0),
        part([2], seed=seed, lam=3.0, threshold=0.1, typical=8.0),
        part([2, 11], "apple", seed, lam=1.25, typical=3.0),
        part([2], "nothing", seed, lam=2.0, threshold=0.5, typical=7.0),
        part([2, 11], "apple", seed, lam=0.5, threshold=0.3, typical=6.0),
        part([7], seed=seed, lam=1.5, threshold=-1.0, typical=2.0),
        part([9], "star", seed, lam=1.0),
    ]


def by_hand(parts: list[SAEEdit], seed: int, h: Tensor, amount: float) -> Tensor:
    """What is subtracted, with loops, in float64."""
    model = sae(seed)
    W_enc, W_dec, b_enc, b_pre = (t.detach().double() for t in (model.W_enc, model.W_dec, model.b_enc, model.b_pre))
    taken = torch.zeros_like(h, dtype=torch.float64)
    for neuron in range(12):
        users = []
        for edit in parts:
            for n, index in enumerate(edit.neurons):
                if index == neuron:
                    moved = isinstance(edit, ReplacingSAEEdit)
                    way = edit.moves[n].double() if isinstance(edit, ReplacingSAEEdit) else W_dec[neuron]
                    users.append((moved, way, edit.lam, float(edit.threshold[n]), float(edit.typical[n])))
        if not users:
            continue
        _, way, *_ = next((user for user in users if user[0]), users[0])
        same = [user for user in users if torch.equal(user[1].float(), way.float())]
        lam, typical = (max(user[n] for user in same) for n in (2, 4))
        threshold = max(0.0, min(user[3] for user in users))
        for b in range(len(h)):
            a = [max(float(W_enc[neuron] @ (x.double() - b_pre) + b_enc[neuron]), 0.0) for x in h[b]]
            a[:LEAD] = [0.0] * LEAD
            if max(a) > threshold:
                gain = max(1.0, typical / max(a))
                for t, code in enumerate(a):
                    taken[b, t] += amount * lam * gain * code * way
    return taken


@pytest.mark.parametrize("edits", [apart, shared])
@given(seed=st.integers(0, 1000), strength=st.floats(0.1, 2))
@settings(max_examples=30, deadline=None)
def test_it_subtracts_what_loops_do(edits: Any, seed: int, strength: float) -> None:
    merged, h = MergedSAEEdit.of(edits(seed)), states(seed)
    assert isinstance(merged, MergedReplacingEdit)
    delta = merged.delta(h, strength)
    expected = by_hand(edits(seed), seed, h, strength)
    made = torch.zeros_like(h) if delta is None else delta
    torch.testing.assert_close(made.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_edits_without_a_common_neuron_do_what_they_do_together_in_any_order(seed: int) -> None:
    edits, h = apart(seed), states(seed)
    one = MergedSAEEdit.of(edits)
    delta = one.delta(h, 1.5)
    assert delta is not None
    torch.testing.assert_close(delta, summed(edits, h, strength=1.5), atol=1e-4, rtol=1e-4)
    assert (one.neurons, one.replace_with) == ([2, 4, 7, 9, 11], ("apple", "", "", "nothing", "apple"))  # type: ignore[attr-defined]
    for order in permutations(edits):
        assert same_tensors(one, MergedSAEEdit.of(order))
    assert same_tensors(one, MergedSAEEdit.of([MergedSAEEdit.of(edits[:2]), MergedSAEEdit.of(edits[2:])]))


def same_tensors(one: SAEEdit, other: SAEEdit) -> bool:
    alike = all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())
    return alike and one.options == other.options and one.kind == other.kind


def test_of_a_shared_neuron_the_first_that_replaces_decides() -> None:
    merged: Any = MergedSAEEdit.of(shared())
    assert merged.neurons == [2, 7, 9, 11]
    assert merged.replace_with == ("apple", "", "star", "apple")
    assert merged.lams.tolist() == [1.25, 1.5, 1.0, 1.25]
    assert merged.typical.tolist() == [6.0, 9.0, 5.0, 6.0], "of those that subtract the same"
    assert merged.threshold.tolist() == pytest.approx([0.1, -1.0, 0.8, 0.3]), "each of them opens it"
    backwards: Any = MergedSAEEdit.of(shared()[::-1])
    assert backwards.replace_with == ("apple", "", "star", "apple")
    assert MergedSAEEdit.of([*shared()[3:], *shared()[:3]]).replace_with[0] == "nothing"  # type: ignore[attr-defined]
    early: Any = MergedSAEEdit.of([MergedSAEEdit.of(shared()[:3]), MergedSAEEdit.of(shared()[3:])])
    assert early.replace_with == merged.replace_with and torch.equal(early.moves, merged.moves)


def test_a_part_that_is_off_decides_nothing_and_another_word_lends_no_strength() -> None:
    off, down = part([2], "apple", lam=0.0, typical=9.0), part([2], lam=1.5)
    for order in ([off, down], [down, off]):
        one = MergedSAEEdit.of(order)
        assert type(one) is MergedSAEEdit and (one.lams.tolist(), one.typical.tolist()) == ([1.5], [5.0])
    apple = part([2], "apple", lam=1.0)
    star = replace(apple, replace_with="star", lam=5.0, typical=torch.tensor([9.0]))
    both: Any = MergedSAEEdit.of([apple, star])
    assert (both.replace_with, both.lams.tolist(), both.typical.tolist()) == (("apple",), [1.0], [5.0])


def test_what_was_first_used_in_inference_mode_has_gradients_later() -> None:
    one, h = MergedSAEEdit.of(apart()), states()
    with torch.inference_mode():
        one.delta(h)
    made = one.delta(h.clone().requires_grad_())
    assert made is not None
    made.sum().backward()


def test_edits_that_only_turn_down_are_merged_as_before() -> None:
    assert type(MergedSAEEdit.of([apart()[0], apart()[3]])) is MergedSAEEdit


def test_a_prompt_that_opens_no_gate_keeps_every_bit() -> None:
    assert MergedSAEEdit.of(shut()).delta(states()) is None
    one = MergedSAEEdit.of([*shut()[:2], apart()[2]])
    torch.testing.assert_close(one.apply(states()), apart()[2].apply(states()))


def test_an_attack_has_the_gradient_of_closed_gates_too() -> None:
    same_gradient_behind_closed_gates(shut())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replace_with": ("apple", "", "", "nothing", "apple", "")}, "words and moves do not fit 5 neurons"),
        ({"replace_with": ("apple", "", "", "nothing", "")}, "words and moves do not fit 5 neurons"),
        ({"replace_with": ("apple", "", "", "nothing", "a](http://x)")}, "each is a word or a short phrase"),
        ({"replace_with": ("apple", "", "", "nothing", 5)}, "replace_with cannot hold 5"),
        ({"replace_with": ("",) * 5, "moves": torch.zeros(0, 6)}, "words and moves do not fit 5 neurons"),
        ({"moves": torch.zeros(3, 5)}, "words and moves do not fit 5 neurons"),
        ({"moves": torch.full((3, 6), float("nan"))}, "moves holds values that are not finite"),
        ({"lams": torch.ones(4)}, "lams must be 5 numbers"),
    ],
)
def test_what_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ExciseError, match=message):
        replace(MergedSAEEdit.of(apart()), **change)


def test_what_can_be_merged() -> None:
    moving = apart()[1]
    assert can_be_merged(moving) and can_be_merged(MergedSAEEdit.of([moving]))
    assert not can_be_merged(replace(moving, gate="threshold"))


def eraser(name: str, *edits: Any, canary: tuple[str, ...] = ("a gun",)) -> Eraser:
    return Eraser(edits, name, name, made_for={}, canary=canary, canary_shift=0.5)


def test_a_part_cannot_move_to_what_another_erases() -> None:
    """Its neuron would not see what the move wrote, and the picture would show it."""
    moving, gun = (replace(eraser(n, e), mentions=(n,)) for n, e in (("dog", part([2], "Guns")), ("gun", part([7]))))
    for order in ([moving, gun], [gun, moving]):
        with pytest.raises(ExciseError, match="'dog' moves states to those of 'Guns', and 'Guns' is to be erased"):
            merge(order)


def test_it_is_saved(tmp_path: Path) -> None:
    made = merge([eraser(str(n), edit) for n, edit in enumerate(apart())], "policy")
    made.save(tmp_path / "policy")
    loaded = Eraser.load(tmp_path / "policy")
    assert loaded.digest == made.digest
    (edit,) = loaded.edits
    assert isinstance(edit, MergedReplacingEdit) and same_tensors(edit, MergedSAEEdit.of(apart()))
    assert torch.equal(edit.apply(states()), MergedSAEEdit.of(apart()).apply(states()))
    assert edit.tensors()["moves"].shape == (3, 6), "what is turned down is saved once"
    assert '"kind": "sae-merged-replacing"' in (tmp_path / "policy" / "eraser.json").read_text()
    assert len(replace(made, canary=tuple(f"prompt {n}" for n in range(5 * 13))).canary) == 65


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        (apart(), "where 3 neurons of one fire, to those of “apple”, “nothing”, and turning down 2 of its neurons"),
        (apart()[2:3], "where one neuron of a sparse autoencoder fires, to those of “nothing”."),
    ],
)
def test_a_card_says_what_it_does(edits: list[SAEEdit], words: str) -> None:
    text = card(eraser("all", MergedSAEEdit.of(edits)))
    assert f"by moving its text encoder's states, {words}" in text
    assert f"| up to {max(edit.lam for edit in edits):g}, by neuron |" in text


def test_on_the_bundled_model_a_move_and_a_turn_are_what_they_are_together(
    one_bundled_pipe: Any, tmp_path: Path
) -> None:
    pipe = one_bundled_pipe
    asked = {"dog": "apple", "gun": ""}
    parts = [excise.erase(pipe, Canvas().concept(name), replace_with=word) for name, word in asked.items()]
    prompts = ["a dog on grass", "a gun on sand", "a bus in the sky", "a dog and a gun"]

    def encoded() -> Tensor:
        with torch.no_grad():
            made: Tensor = pipe.encode_prompt(prompts, "cpu", 1, False)[0]
        return made

    plain = encoded()
    with parts[0].attach(pipe), parts[1].attach(pipe):
        together = encoded()
    merged = merge(parts, "policy")
    merged.save(tmp_path / "policy")
    with Eraser.load(tmp_path / "policy").attach(pipe):
        states = encoded()
    torch.testing.assert_close(states, together, atol=1e-4, rtol=1e-4)
    moved = [not torch.equal(one, other) for one, other in zip(states, plain, strict=True)]
    assert moved == [True, True, False, True]
    checks = {check.name: check for check in verify(tmp_path / "policy", pipe, sae=load(reference.sae_folder()))}
    assert [name for name, check in checks.items() if not check.passed] == []
    assert "is moved to the states of “apple”" in checks["trusted as signed"].detail
    assert "dog" in checks["removal"].detail and "gun" in checks["removal"].detail
    replace(merged, mentions=("gun",), canary=merged.canary[1:]).save(tmp_path / "hiding")
    checks = {check.name: check for check in verify(tmp_path / "hiding", pipe, sae=load(reference.sae_folder()))}
    assert "what it removes of “dog”, which it does not mention" in checks["trusted as signed"].detail
