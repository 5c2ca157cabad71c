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
    OTHERS_PREDICTED,
    PREDICTIONS,
    WHOLE_DENOISER,
    Floor,
    Removal,
    Sums,
    measured_words,
    prediction_floor,
    removed_from_prediction,
    removed_from_text,
    removed_of,
    removed_of_each,
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


def test_other_words_are_compared_with_each_other_and_never_with_the_mention() -> None:
    generator = torch.Generator().manual_seed(1)
    plain, edited = (torch.randn(4, 2, 3, generator=generator) for _ in range(2))
    found = [(sums.share, sums.cosine) for sums in removed_of_each(plain, edited)]
    left = {0: (1, 2, 3), 1: (2, 3), 2: (1, 3), 3: (1, 2)}
    for word, others in left.items():
        by_loops = by_hand(plain[word], edited[word], torch.stack([plain[other] for other in others]))
        assert found[word] == pytest.approx(by_loops)


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
    ("share", "cosine", "lead", "enough"),
    [
        (0.5, 0.6, 0.25, True),
        (0.49, 0.9, 1, False),
        (2, 0.59, 1, False),
        (2, 0.9, 0.24, False),
        (-1, -1, 1, False),
        (math.nan, 1, 1, False),
        (1, math.nan, 1, False),
        (1, 1, math.nan, False),
    ],
)
def test_every_floor_has_to_be_reached(share: float, cosine: float, lead: float, enough: bool) -> None:
    others = (share * (1 - lead) - 1, share * (1 - lead) + 1)
    removal = Removal("gun", "all", share, cosine, Floor(0.5, 0.6, 0.25), others)
    assert removal.enough is enough
    assert (removal.margin >= 1) is enough


def test_what_weakens_every_word_alike_has_no_lead() -> None:
    """It passes as far as its own share goes: all words come closer to each other."""
    plain = torch.randn(13, 400, generator=torch.Generator().manual_seed(2))
    own, *others = removed_of_each(plain, 0.4 * plain + 0.6 * plain.mean(0))
    removal = Removal("gun", "all", own.share, own.cosine, PREDICTIONS, tuple(other.share for other in others))
    assert removal.share > 0.5
    assert removal.cosine > 0.9
    assert abs(removal.lead) < 0.1
    assert not removal.enough


def test_a_floor_without_a_lead_does_not_ask_it() -> None:
    floor = Floor(0.5, 0.6, None)
    assert Removal("gun", "all", 0.5, 0.6, floor, (0.7,)).enough
    assert not Removal("gun", "all", 0.5, 0.59, floor, (0.7,)).enough


def test_the_lead_is_asked_of_all_but_weights_outside_cross_attention(tiny_pipe: Any) -> None:
    inside, outside = (
        next(name for name, _ in tiny_pipe.unet.named_modules() if name.endswith(end))
        for end in ("attn2.to_v", "attn1.to_v")
    )

    def floor(*paths: str) -> Floor:
        layers = [(path, tiny_pipe.unet.get_submodule(path).weight.detach().clone()) for path in paths]
        edits = tuple(WeightEdit(Site("unet", path, len(weight)), -weight) for path, weight in layers)
        eraser = Eraser(edits, "gun", "gun", ("gun",), made_for(tiny_pipe), canary=("a gun",))
        with eraser.attach(tiny_pipe) as attachment:
            return prediction_floor(attachment)

    assert floor(inside) == PREDICTIONS
    assert floor(outside) == floor(inside, outside) == WHOLE_DENOISER
    assert WHOLE_DENOISER.lead is None


def test_the_lead_compares_with_the_mean_of_other_words() -> None:
    def lead(share: float, *others: float) -> float:
        return Removal("gun", "all", share, 1.0, NEURONS, others).lead

    assert lead(0.5, 0.1, 0.3) == pytest.approx(0.6)
    assert lead(0.5, 0.5, 0.5) == 0
    assert lead(0.5, 0.0, 0.0) == 1
    assert lead(0.5, -0.2, 0.0) == pytest.approx(1.2), "it amplifies other words"
    assert lead(-0.5, 0.1) == lead(0.0, 0.0) == lead(0.5) == 0, "nothing is removed, or nothing was compared"


def test_mentions_are_measured_once_each() -> None:
    assert measured_words(("gun", "Gun", " ", "rifle", "axe"), 2) == ("gun", "rifle")


def test_what_text_loses_is_what_its_states_lose(tiny_pipe: Any, firm_eraser: Eraser) -> None:
    """The same figure from the pipeline's `encode_prompt`, sentence by sentence."""
    plain, edited, without, after = (list[torch.Tensor]() for _ in range(4))
    with torch.no_grad(), firm_eraser.attach(tiny_pipe) as attachment:
        found = removed_from_text(attachment, "gun", "object", ("gun",))
        others = others_like("gun", "object", lambda text: len(tiny_pipe.tokenizer(text).input_ids), OTHERS, ("gun",))
        for form in ("{}", "a {}", "a picture of a {} on grass", "on a wooden table, a {} and a tree"):
            with proving(attachment, "text"):
                edited.append(encode_prompt(tiny_pipe, form.format("gun"))[0])
                after.append(torch.stack([encode_prompt(tiny_pipe, form.format(word))[0] for word in others]))
            with unedited():
                plain.append(encode_prompt(tiny_pipe, form.format("gun"))[0])
                without.append(torch.stack([encode_prompt(tiny_pipe, form.format(word))[0] for word in others]))
    whole = removed_of(torch.stack(plain), torch.stack(edited), torch.stack(without, 1))
    assert (found.share, found.cosine) == pytest.approx((whole.share, whole.cosine), rel=1e-4)
    for n, share in enumerate(found.others):
        left = [m for m in range(len(others)) if m != n]
        own = removed_of(
            *(torch.stack([of[n] for of in side]) for side in (without, after)),
            torch.stack([of[left] for of in without], 1),
        )
        assert share == pytest.approx(own.share, abs=1e-6)
    assert len(found.others) == len(others)
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


def test_a_denoiser_that_reads_no_word_removes_all_of_the_difference(tiny_pipe: Any) -> None:
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
    assert len(found.others) == OTHERS_PREDICTED
    louder = replace(deaf, edits=tuple(replace(edit, delta=-edit.delta) for edit in edits))  # type: ignore[operator]
    with louder.attach(tiny_pipe) as attachment:
        found = removed_from_prediction(attachment, "gun", "object", ("gun",))
    assert found.share < 0
    assert not found.enough


def test_as_many_steps_as_an_edit_was_measured_at() -> None:
    assert steps_for(()) == STEPS
