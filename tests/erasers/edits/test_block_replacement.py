"""The edit that replaces detected patches: against loops, in any batch, and on a live pipeline."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from excise.erasers import Attachment, Eraser, made_for, verify
from excise.erasers.artefact.hub import card
from excise.erasers.edits.base import StepInfo
from excise.erasers.edits.block_replacement import ReplacementEdit, draws, replacements
from excise.erasers.gates import attacking
from excise.errors import ExciseError
from excise.sae import SAEConfig, TopKSAE
from excise.sites import block_site, capture_blocks

STEPS, PROMPT = 3, "a gun on grass"


@pytest.fixture
def drawn(tiny_pipe: Any) -> list[Any]:
    site = block_site(tiny_pipe, "up_blocks.0.attentions.0")
    return list(capture_blocks(tiny_pipe, site, [PROMPT, "a cat"], seeds=[0, 1], steps=STEPS))


@pytest.fixture
def sae(drawn: list[Any]) -> TopKSAE:
    sae = TopKSAE(SAEConfig(drawn[0].states.shape[-1], 24, 5), seed=2)
    with torch.no_grad():
        sae.b_pre.normal_(generator=torch.Generator().manual_seed(1))
        sae.b_enc.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    return sae


@pytest.fixture
def edit(tiny_pipe: Any, drawn: list[Any], sae: TopKSAE) -> ReplacementEdit:
    """Of the two neurons that fire most; each one's gate is its median code over the patches of that step."""
    site = block_site(tiny_pipe, "up_blocks.0.attentions.0")
    codes = [((p.states - sae.b_pre) @ sae.W_enc.T + sae.b_enc).relu().flatten(0, 1).detach() for p in drawn]
    neurons = sum(z.mean(0) for z in codes).topk(2).indices.tolist()  # type: ignore[union-attr]
    gate = torch.stack([z[:, neurons].quantile(torch.tensor(0.7), 0) for z in codes])
    tables = {"level": torch.zeros(STEPS, 2), "cut": torch.zeros(STEPS, 2), "gate": gate}
    timesteps = torch.tensor([p.timestep for p in drawn])
    return ReplacementEdit.from_sae(sae, site, neurons, timesteps=timesteps, **tables, seed=7)


def at(drawn: list[Any], step: int) -> StepInfo:
    return StepInfo((drawn[step].timestep,))


def by_hand(edit: ReplacementEdit, sae: TopKSAE, x: Tensor, step: int, strength: float) -> tuple[Tensor, list[int]]:
    """The edited patches from PER's rule, patch by patch, and how many of each picture were detected."""
    out, counts = x.clone(), []
    u = torch.rand(x.shape[1], generator=torch.Generator().manual_seed(edit.seed + step), dtype=torch.float64).tolist()
    for b in range(len(x)):
        detected = []
        for p in range(x.shape[1]):
            for column, i in enumerate(edit.neurons):
                pre = ((x[b, p].double() - sae.b_pre.double()) @ sae.W_enc[i].double() + sae.b_enc[i].double()).item()
                z = pre if pre > max(0.0, float(edit.cut[step, column])) else 0.0
                if z > float(edit.gate[step, column]):
                    detected.append(p)
                    break
        others = [p for p in range(x.shape[1]) if p not in detected]
        counts.append(len(detected))
        for p in detected:
            covered = len(detected) > edit.most * x.shape[1]
            new = sae.b_pre if covered else x[b, others[math.floor(u[p] * len(others))]]
            out[b, p] = x[b, p] + strength * (new - x[b, p])
    return out.detach(), counts


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_detected_patches_are_replaced_by_others_of_the_same_picture(
    edit: ReplacementEdit, sae: TopKSAE, drawn: list[Any], step: int, strength: float
) -> None:
    x = drawn[step].states
    delta = edit.delta(x, strength, step=at(drawn, step))
    assert delta is not None
    wanted, counts = by_hand(edit, sae, x, step, strength)
    assert all(0 < count < 0.9 * x.shape[1] for count in counts), counts
    torch.testing.assert_close(x - delta, wanted, atol=1e-5, rtol=1e-5)
    kept = (wanted == x).all(-1)
    assert not delta[kept].any(), "the others keep every bit"
    assert int((~kept).sum()) == sum(counts)


def test_a_picture_that_is_nearly_covered_becomes_the_saes_own_mean(
    edit: ReplacementEdit, sae: TopKSAE, drawn: list[Any]
) -> None:
    x = drawn[0].states
    _, counts = by_hand(edit, sae, x, 0, 1.0)
    least = min(counts) / x.shape[1]
    for most in (least, math.nextafter(least, 0)):
        own = replace(edit, most=most)
        delta = own.delta(x, step=at(drawn, 0))
        assert delta is not None
        torch.testing.assert_close(x - delta, by_hand(own, sae, x, 0, 1.0)[0], atol=1e-5, rtol=1e-5)
    open_ = replace(edit, gate=torch.full_like(edit.gate, -1.0))
    delta = open_.delta(x, step=at(drawn, 0))
    assert delta is not None
    torch.testing.assert_close(x - delta, sae.b_pre.detach().expand_as(x), atol=1e-5, rtol=1e-5)


def test_a_patch_takes_any_of_the_others_alike() -> None:
    x = torch.arange(6.0)[None, :, None]
    detected = torch.tensor([[True, False, False, True, False, False]])
    for u, taken in ((0.0, 1), (0.2499, 1), (0.25, 2), (0.5, 4), (0.9999, 5)):
        found = replacements(x, detected, torch.full((1, 6), u, dtype=torch.float64))
        assert found[0, 0, 0] == found[0, 3, 0] == taken
    everything = replacements(x, torch.ones(1, 6, dtype=torch.bool), torch.full((1, 6), 0.5, dtype=torch.float64))
    assert everything[0, 0, 0] == 3, "of a picture without any other, one of all"


def test_draws_are_of_the_seed_and_the_step_alone() -> None:
    before = torch.random.get_rng_state()
    assert torch.equal(draws(3, 1, 64), draws(3, 1, 64).clone())
    assert not torch.equal(draws(3, 1, 64), draws(3, 2, 64)) and not torch.equal(draws(3, 1, 64), draws(4, 1, 64))
    assert draws(2**32 - 1, 5, 8).shape == (8,)
    assert torch.equal(torch.random.get_rng_state(), before), "the model's own noise is as ever"


def test_a_picture_is_the_same_in_any_batch(edit: ReplacementEdit, drawn: list[Any]) -> None:
    both = torch.cat([drawn[0].states, drawn[1].states])
    steps = StepInfo((drawn[0].timestep,) * 2 + (drawn[1].timestep,) * 2)
    together = edit.delta(both, step=steps)
    alone = [edit.delta(both[n : n + 1], step=StepInfo(steps.timesteps[n : n + 1])) for n in range(4)]
    assert together is not None
    torch.testing.assert_close(together, torch.cat([a for a in alone if a is not None]))


def test_a_step_at_which_no_neuron_is_edited_keeps_every_bit(edit: ReplacementEdit, drawn: list[Any]) -> None:
    gate = edit.gate.clone()
    gate[0] = math.inf
    own = replace(edit, gate=gate)
    assert own.delta(drawn[0].states, step=at(drawn, 0)) is None
    both = torch.cat([drawn[0].states[:1], drawn[1].states[:1]])
    delta = own.delta(both, step=StepInfo((drawn[0].timestep, drawn[1].timestep)))
    assert delta is not None and not delta[0].any() and bool(delta[1].any())


def test_an_attack_has_a_gradient_where_nothing_is_detected(edit: ReplacementEdit, drawn: list[Any]) -> None:
    shut = replace(edit, gate=torch.full_like(edit.gate, 1e3))
    x = drawn[0].states.clone().requires_grad_()
    with attacking("straight-through") as gates:
        delta = shut.delta(x, step=at(drawn, 0))
    assert delta is not None and not delta.any() and gates.excess
    assert all(bool(torch.isfinite(excess)) for excess in gates.excess)
    (found,) = torch.autograd.grad(delta.square().sum() + delta.sum(), x)
    assert bool(found.any()) and bool(torch.isfinite(found).all())


@pytest.fixture
def eraser(tiny_pipe: Any, edit: ReplacementEdit) -> Eraser:
    origin = made_for(tiny_pipe, ["unet"])
    return Eraser((edit,), "gun-block", "gun", ("gun",), origin, canary=(PROMPT,), method="saeuron")


def draw(pipe: Any, seed: int = 3) -> np.ndarray:
    how = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "np"}
    made: np.ndarray = pipe(PROMPT, generator=torch.Generator().manual_seed(seed), **how).images
    return made


@pytest.mark.usefixtures("short_removal")
def test_an_attached_eraser_draws_the_same_again_and_a_detached_one_leaves_no_trace(
    tiny_pipe: Any, eraser: Eraser, tmp_path: Path
) -> None:
    plain = draw(tiny_pipe)
    with eraser.attach(tiny_pipe) as attachment:
        assert attachment.shift > 0
        edited = draw(tiny_pipe)
        assert not np.array_equal(edited, plain)
        assert np.array_equal(draw(tiny_pipe), edited)
        whole = replace(eraser, canary_shift=attachment.shift)
    assert np.array_equal(draw(tiny_pipe), plain)
    other = replace(eraser, edits=(replace(eraser.edits[0], seed=8),))
    with other.attach(tiny_pipe):
        assert not np.array_equal(draw(tiny_pipe), edited)
    assert other.digest != eraser.digest
    assert "by replacing patches that are found by 2 neurons of a sparse autoencoder on a block" in card(whole)
    whole.save(tmp_path / "gun")
    again = Eraser.load(tmp_path / "gun")
    assert again.digest == whole.digest and again.edits[0].seed == 7  # type: ignore[union-attr]
    assert all(check.passed for check in verify(tmp_path / "gun"))
    with again.attach(tiny_pipe):
        assert np.array_equal(draw(tiny_pipe), edited)


def test_a_second_one_at_the_block_is_refused_and_the_first_stays(tiny_pipe: Any, eraser: Eraser) -> None:
    with eraser.attach(tiny_pipe):
        edited = draw(tiny_pipe)
        with pytest.raises(ExciseError, match="both replace patches of"):
            replace(eraser, name="other").attach(tiny_pipe)
        with Attachment(eraser, tiny_pipe, trial=True):  # which acts in no image
            assert np.array_equal(draw(tiny_pipe), edited)
        assert np.array_equal(draw(tiny_pipe), edited)


@pytest.mark.parametrize("change", [{"seed": -1}, {"seed": 2**32}, {"most": -0.1}, {"most": 1.1}, {"most": math.nan}])
def test_an_impossible_edit_is_refused(edit: ReplacementEdit, change: dict[str, Any]) -> None:
    with pytest.raises(ExciseError, match="the seed is from 0 to 4294967295, and most is a share from 0 to 1"):
        replace(edit, **change)
    with pytest.raises(ExciseError, match="compat is about an edit of codes"):
        replace(edit, compat=True)
