"""How much of a concept an eraser removes: the formula against plain loops, and predictions from the same latents."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from excise.concepts.others import others_like
from excise.erasers import Eraser, WeightEdit, made_for
from excise.erasers.hooks.context import proving, unedited
from excise.erasers.proof.removal import (
    NEURONS,
    OTHERS,
    PREDICTIONS,
    Floor,
    Removal,
    Sums,
    measured_words,
    removed_from_prediction,
    removed_from_text,
    removed_of,
)
from excise.erasers.proof.replay import STEPS, Replay, steps_for
from excise.sites import Site
from excise.sites.encoding import encode_prompt


def by_hand(plain: torch.Tensor, edited: torch.Tensor, others: torch.Tensor) -> tuple[float, float]:
    """Share and cosine, one value at a time."""
    along = difference = removed = 0.0
    for n in range(plain.numel()):
        own = float(plain.flatten()[n])
        mean = sum(float(other.flatten()[n]) for other in others) / len(others)
        d, r = own - mean, own - float(edited.flatten()[n])
        along, difference, removed = along + d * r, difference + d * d, removed + r * r
    return along / difference, along / math.sqrt(difference * removed)


def test_share_and_cosine_are_those_of_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 5):
        plain, edited = (torch.randn(3, 4, generator=generator) for _ in range(2))
        others = torch.randn(n, 3, 4, generator=generator)
        found = removed_of(plain, edited, others)
        assert (found.share, found.cosine) == pytest.approx(by_hand(plain, edited, others))


def test_removing_all_nothing_and_the_opposite() -> None:
    plain, others = torch.randn(2, 5), torch.randn(3, 2, 5)
    difference = plain - others.mean(0)
    for share in (1.0, 0.25, -1.0, 2.0):
        found = removed_of(plain, plain - share * difference, others)
        assert found.share == pytest.approx(share, rel=1e-5)
        assert found.cosine == pytest.approx(math.copysign(1, share), rel=1e-5)
    untouched = removed_of(plain, plain, others)
    assert (untouched.share, untouched.cosine) == (0, 0)
    same = removed_of(plain, plain - 1, plain[None])
    assert (same.share, same.cosine) == (0, 0), "there is no difference to remove"


def test_sums_over_prompts_add_up() -> None:
    a, b = Sums(1, 2, 3), Sums(-4, 5, 6)
    assert a + b == Sums(-3, 7, 9)
    assert (a + b).share == -3 / 7


@pytest.mark.parametrize(
    ("share", "cosine", "enough"),
    [
        (0.5, 0.6, True),
        (0.49, 0.9, False),
        (2, 0.59, False),
        (-1, -1, False),
        (math.nan, 1, False),
        (1, math.nan, False),
    ],
)
def test_both_floors_have_to_be_reached(share: float, cosine: float, enough: bool) -> None:
    assert Removal("gun", "all", share, cosine, Floor(0.5, 0.6)).enough is enough


def test_mentions_are_measured_once_each() -> None:
    assert measured_words(("gun", "Gun", " ", "rifle", "axe"), 2) == ("gun", "rifle")


def test_what_text_loses_is_what_its_states_lose(tiny_pipe: Any, firm_eraser: Eraser) -> None:
    """The same figure from the pipeline's `encode_prompt`, sentence by sentence."""
    plain, edited, without = list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor]()
    with torch.no_grad(), firm_eraser.attach(tiny_pipe) as attachment:
        found = removed_from_text(attachment, "gun", "object", ("gun",))
        others = others_like("gun", "object", lambda text: len(tiny_pipe.tokenizer(text).input_ids), OTHERS, ("gun",))
        for form in ("{}", "a {}", "a picture of a {} on grass", "on a wooden table, a {} and a tree"):
            with proving(attachment, "text"):
                edited.append(encode_prompt(tiny_pipe, form.format("gun"))[0])
            with unedited():
                plain.append(encode_prompt(tiny_pipe, form.format("gun"))[0])
                without.append(torch.stack([encode_prompt(tiny_pipe, form.format(word))[0] for word in others]))
    whole = removed_of(torch.stack(plain), torch.stack(edited), torch.stack(without, 1))
    assert (found.share, found.cosine) == pytest.approx((whole.share, whole.cosine), rel=1e-4)
    assert found.floor == NEURONS
    assert found.enough


def test_later_prompts_are_predicted_from_the_first_ones_latents(tiny_pipe: Any) -> None:
    seen: list[torch.Tensor] = []
    handle = tiny_pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    replay = Replay(tiny_pipe, 6)
    with unedited():
        first, second = replay.predict("a gun"), replay.predict("a cat")
        assert len(first) == len(second) == 3
        again = replay.predict("a gun")
    handle.remove()
    for n in range(3):
        assert torch.equal(seen[n], seen[3 + n])
        assert torch.equal(first[n], again[n])
        assert not torch.equal(first[n], second[n])
    assert "forward" not in vars(tiny_pipe.unet), "nothing stays behind"


def test_a_denoiser_that_reads_another_word_removes_all_of_the_difference(tiny_pipe: Any) -> None:
    """Weights that make the U-Net read nothing of a prompt leave no difference; their opposite doubles it."""
    edits = []
    for name, module in tiny_pipe.unet.named_modules():
        if name.endswith("attn2.to_v"):
            edits.append(WeightEdit(Site("unet", name, len(module.weight)), -module.weight.detach().clone()))
    deaf = Eraser(tuple(edits), "deaf", "gun", ("gun",), made_for(tiny_pipe), canary=("a gun",))
    with deaf.attach(tiny_pipe) as attachment:
        found = removed_from_prediction(attachment, "gun", "object", ("gun",))
    assert found.floor == PREDICTIONS
    assert found.share > 0.5
    assert found.enough
    louder = replace(deaf, edits=tuple(replace(edit, delta=-edit.delta) for edit in edits))  # type: ignore[operator]
    with louder.attach(tiny_pipe) as attachment:
        found = removed_from_prediction(attachment, "gun", "object", ("gun",))
    assert found.share < 0
    assert not found.enough


def test_as_many_steps_as_an_edit_was_measured_at() -> None:
    assert steps_for(()) == STEPS
