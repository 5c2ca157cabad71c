"""DuMo: a copy of the encoder modulates the skip connections and nothing else, and its two trainings make an eraser."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from excise import reference
from excise.bench.canvas.suite import Canvas
from excise.concepts import Concept, Pair
from excise.erasers import Eraser, made_for, verify
from excise.erasers.apply.skips import skips_of
from excise.erasers.edits.skips import ModulationEdit, bins_of
from excise.erasers.edits.weights import CopyEdit
from excise.erasers.hooks.context import unedited
from excise.errors import EraserDidNotFire, ExciseError
from excise.methods import method
from excise.methods.configs.trained import DuMoConfig
from excise.methods.trained.dumo import Balanced, Copied, objective, prompts, weights
from excise.methods.trained.sampling import encode_conditioning, frozen_unet
from excise.methods.trained.trainer import watch_training
from excise.sites import Site
from tests import tiny
from tests.methods.trained.replaying import check_erases

CONCEPT = Concept("gun", ("gun",), (Pair("a gun on grass", "a cat on grass"),), ("a tree", "two guns"))
CONFIG = DuMoConfig(iterations=4, lr=1e-2, steps=3, batch=2, keep=0.5, bins=4, alpha_iterations=2, alpha_lr=0.5)
SITE, SKIPS = Site("unet", "", 4), 4
PROMPTS = ["a gun on grass", "a bowl of soup"]
TIMES = torch.tensor([10, 999])


def draw(pipe: Any, **how: Any) -> np.ndarray:
    generator = [torch.Generator().manual_seed(n) for n in range(len(PROMPTS))]
    how = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np", **how}
    made: np.ndarray = pipe(PROMPTS, generator=generator, **how).images
    return made


def stirred(pipe: Any, alpha: Tensor) -> Eraser:
    """An eraser with random changes of the copy, and these coefficients."""
    edits: list[ModulationEdit | CopyEdit] = [ModulationEdit(SITE, alpha, 1000)]
    for n, (site, weight) in enumerate(weights(pipe.unet).items()):
        generator = torch.Generator().manual_seed(n)
        shapes = (len(weight), 2), (2, weight[0].numel())
        up, down = (0.3 * torch.randn(shape, generator=generator) for shape in shapes)
        edits.append(CopyEdit(site, up=up.half(), down=down.half()))
    whose = made_for(pipe, ["unet"])
    return Eraser(tuple(edits), "gun-dumo", "gun", ("gun",), whose, canary=("a gun on grass",), method="dumo")


def copy_of(pipe: Any, eraser: Eraser) -> Any:
    """The U-Net with the copy's weights written into it."""
    written = copy.deepcopy(pipe.unet)
    for edit in eraser.edits:
        if isinstance(edit, CopyEdit):
            weight = written.get_submodule(edit.site.path).weight
            weight.data = weight.data + edit.of(weight)
    return written


def by_hand(
    unet: Any, other: Any, alpha: Callable[[int, int], float], sample: Tensor, times: Tensor, text: Tensor
) -> Tensor:
    """The tiny U-Net, block by block: the skip connections of both encoders, the middle and decoder of the first."""
    emb = unet.time_embedding(unet.time_proj(times).to(sample))
    ways = []
    for each in (unet, other):
        hidden = each.conv_in(sample)
        skips = [hidden]
        for block in each.down_blocks:
            text_too = {"encoder_hidden_states": text} if hasattr(block, "attentions") else {}
            hidden, more = block(hidden_states=hidden, temb=emb, **text_too)
            skips += more
        ways.append((hidden, skips))
    (hidden, own), (_, others) = ways
    hidden = unet.mid_block(hidden, emb, encoder_hidden_states=text)
    skips = []
    for n, (f, g) in enumerate(zip(own, others, strict=True)):
        rows = [f[row] + alpha(row, n) * (g[row] - f[row]) for row in range(len(f))]
        skips.append(torch.stack(rows))
    for block in unet.up_blocks:
        text_too = {"encoder_hidden_states": text} if hasattr(block, "attentions") else {}
        taken = tuple(skips[-len(block.resnets) :])
        del skips[-len(block.resnets) :]
        hidden = block(hidden_states=hidden, temb=emb, res_hidden_states_tuple=taken, **text_too)
    made: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
    return made


def add_noise() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 64, generator=generator)


def test_timesteps_are_in_bins_of_equal_length() -> None:
    times = torch.tensor([0, 49, 50, 499, 999, 1000])
    assert bins_of(times, 20, 1000).tolist() == [0, 0, 1, 9, 19, 19]
    assert bins_of(torch.tensor([249.9, 250.0]), 4, 1000).tolist() == [0, 1]


def test_only_the_skip_connections_change(tiny_pipe: Any) -> None:
    unet, (sample, text) = tiny_pipe.unet, add_noise()
    assert skips_of(unet) == SKIPS
    alpha = torch.rand(4, SKIPS, generator=torch.Generator().manual_seed(1))
    eraser = stirred(tiny_pipe, alpha)
    other = copy_of(tiny_pipe, eraser)
    with torch.no_grad():
        before = unet(sample, TIMES, text).sample
        torch.testing.assert_close(by_hand(unet, unet, lambda row, n: 0.0, sample, TIMES, text), before)
        # 10 is in the first of four bins, 999 in the last.
        wanted = by_hand(unet, other, lambda row, n: float(alpha[(0, 3)[row], n]), sample, TIMES, text)
        with eraser.attach(tiny_pipe) as attachment:
            made = unet(sample, TIMES, text).sample
            attachment.strength = 0.5
            half = unet(sample, TIMES, text, return_dict=False)[0]
            with unedited():
                assert torch.equal(unet(sample, TIMES, text).sample, before)
            attachment.strength = 0.0
            assert torch.equal(unet(sample, TIMES, text).sample, before)
        assert torch.equal(unet(sample, TIMES, text).sample, before)
        torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-5)
        wanted = by_hand(unet, other, lambda row, n: float(alpha[(0, 3)[row], n]) / 2, sample, TIMES, text)
        torch.testing.assert_close(half, wanted, atol=1e-5, rtol=1e-5)
        assert (made - before).abs().max() > 0.01
        quiet = alpha.clone()
        quiet[0] = 0
        with stirred(tiny_pipe, quiet).attach(tiny_pipe):
            made = unet(sample, TIMES, text).sample
        torch.testing.assert_close(made[0], before[0], atol=1e-6, rtol=1e-6)
        assert (made[1] - before[1]).abs().max() > 0.01
    hooked = [m for m in unet.modules() if "forward" in vars(m) or m._forward_pre_hooks or m._forward_hooks]
    assert not hooked


def test_gradients_reach_the_text_through_the_copy(tiny_pipe: Any) -> None:
    sample, text = add_noise()
    alpha = torch.full((1, SKIPS), 0.7)
    eraser = stirred(tiny_pipe, alpha)
    other = copy_of(tiny_pipe, eraser)
    text.requires_grad_()
    wanted = by_hand(tiny_pipe.unet, other, lambda row, n: 0.7, sample, TIMES, text).square().sum()
    with eraser.attach(tiny_pipe):
        made = tiny_pipe.unet(sample, TIMES, text).sample.square().sum()
        slopes = torch.autograd.grad(made, text)[0]
    torch.testing.assert_close(slopes, torch.autograd.grad(wanted, text)[0], atol=1e-4, rtol=1e-3)


def test_two_at_once_and_one_beside_another_kind(tiny_pipe: Any) -> None:
    """Each adds its own difference, and guidance's third run of the U-Net is the U-Net's own."""
    sample, text = add_noise()
    erasers = [stirred(tiny_pipe, torch.full((1, SKIPS), by)) for by in (0.3, 0.6)]
    erasers[1] = replace(erasers[1], name="other")
    other = copy_of(tiny_pipe, erasers[0])
    with torch.no_grad(), erasers[0].attach(tiny_pipe), erasers[1].attach(tiny_pipe):
        made = tiny_pipe.unet(sample, TIMES, text).sample
    with torch.no_grad():
        wanted = by_hand(tiny_pipe.unet, other, lambda row, n: 0.9, sample, TIMES, text)
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-5)
    before = draw(tiny_pipe)
    guided = method("sld").fit(tiny_pipe, CONCEPT, method("sld").Config(level="max", warmup=0))
    with guided.attach(tiny_pipe), erasers[0].attach(tiny_pipe):
        assert np.isfinite(draw(tiny_pipe)).all()
    assert np.array_equal(draw(tiny_pipe), before)


def test_what_unhooks_a_part_is_noticed(tiny_pipe: Any) -> None:
    sample, text = add_noise()
    eraser = stirred(tiny_pipe, torch.ones(1, SKIPS))
    with eraser.attach(tiny_pipe):
        tiny_pipe.unet.up_blocks[1]._forward_pre_hooks.clear()
        tiny_pipe.unet.up_blocks[1]._forward_pre_hooks_with_kwargs.clear()
        with pytest.raises(EraserDidNotFire, match="saw no run of unet"):
            tiny_pipe.unet(sample, TIMES, text)
    with eraser.attach(tiny_pipe):
        tiny_pipe.unet.conv_in._forward_hooks.clear()
        with pytest.raises(ExciseError, match="use the U-Net that it was fitted on"):
            tiny_pipe.unet(sample, TIMES, text)


def loss_by_hand(pipe: Any, predict: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Both terms at pictures that are drawn here, step by step; `predict` is of a picture, timestep and text states."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(2):
        torch.randint(1, (1,), generator=generator)
    done = int(torch.randint(3, (1,), generator=generator))
    word, other, nothing = (pipe.encode_prompt(t, "cpu", 1, False)[0].repeat(2, 1, 1) for t in ("gun", "a cat", ""))

    def own(x: Tensor, t: Tensor, states: Tensor) -> Tensor:
        made: Tensor = pipe.unet(x, t, states).sample
        return made

    def partly(model: Callable[[Tensor, Tensor, Tensor], Tensor], states: Tensor) -> tuple[Tensor, Tensor]:
        scheduler = copy.deepcopy(pipe.scheduler)
        scheduler.set_timesteps(3)
        x = torch.randn(2, 4, 8, 8, generator=generator)
        for t in scheduler.timesteps[:done]:
            without = model(x, t, nothing)
            x = scheduler.step(without + 3.0 * (model(x, t, states) - without), t, x).prev_sample
        return x, scheduler.timesteps[done]

    with torch.no_grad():
        x, t = partly(predict, word)
        aim = own(x, t, nothing) - 20 * (own(x, t, word) - own(x, t, nothing))
        erasing = F.mse_loss(predict(x, t, word), aim)
        x, t = partly(own, other)
        keeping = F.mse_loss(predict(x, t, other), own(x, t, other))
    assert keeping > 0
    return erasing + 0.5 * keeping


def test_the_loss_of_both_trainings(tiny_pipe: Any) -> None:
    unet = tiny_pipe.unet
    word, other, empty = (encode_conditioning(tiny_pipe, text, "dumo") for text in ("gun", "a cat", ""))
    student = Copied(unet, weights(unet), {}, 2, torch.Generator().manual_seed(0))
    written = copy.deepcopy(unet)
    with torch.no_grad():
        for n, (site, change) in enumerate(student.changes.items()):
            change.add_(0.2 * torch.randn(change.shape, generator=torch.Generator().manual_seed(n)))
            up, down = student.factors(site)
            weight = written.get_submodule(site.path).weight
            weight += (up @ down).reshape(weight.shape)
    balanced = Balanced(student, SITE, 1000, CONFIG)
    with torch.no_grad():
        balanced.changes[SITE].normal_(generator=torch.Generator().manual_seed(5))
    alpha = 1 / (1 + torch.exp(-balanced.changes[SITE].detach()))
    config = replace(CONFIG, eta=20.0)  # A random model's predictions hardly depend on the text.
    for own in (student, balanced):

        def predict(x: Tensor, t: Tensor, states: Tensor, own: Any = own) -> Tensor:
            each = (lambda row, n: 1.0) if own is student else (lambda row, n: float(alpha[int(t) * 4 // 1000, n]))
            return by_hand(unet, written, each, x, t.expand(2), states)

        generator = torch.Generator().manual_seed(7)
        made = objective(tiny_pipe, own, frozen_unet(tiny_pipe), [word], [other], empty, generator, config)
        assert float(made.detach()) == pytest.approx(float(loss_by_hand(tiny_pipe, predict)), rel=1e-3)
        slopes = torch.autograd.grad(made, list(own.changes.values()))
        assert all(bool(slope.any()) for slope in slopes)
    assert len(balanced.changes) == 1


def test_prompts_without_the_concept_are_kept() -> None:
    assert prompts(CONCEPT, 5) == (["gun", "a gun on grass"], ["", "a cat on grass", "a tree"])
    assert prompts(Concept("gun", ("gun",)), 5) == (["gun"], [""])
    many = Concept("gun", ("gun",), tuple(Pair(f"gun {n}", f"cat {n}") for n in range(8)))
    assert prompts(many, 2) == (["gun", "gun 0", "gun 4"], ["", "cat 0", "cat 4"])


@pytest.mark.usefixtures("short_removal")
def test_training_lowers_the_loss_and_makes_an_eraser(tiny_pipe: Any, tmp_path: Path) -> None:
    losses: list[tuple[int, int, float]] = []
    before = {key: value.clone() for key, value in tiny_pipe.unet.state_dict().items()}
    plain_ones = draw(tiny_pipe)
    with watch_training(lambda *line: losses.append(line)):
        config = replace(CONFIG, iterations=40, lr=1e-3, steps=1, alpha_iterations=3)
        eraser = method("dumo").fit(tiny_pipe, Concept("gun", ("gun",)), config)
    assert [line[:2] for line in losses] == [*((n + 1, 40) for n in range(40)), *((n + 1, 3) for n in range(3))]
    assert sum(line[2] for line in losses[30:40]) < 0.8 * sum(line[2] for line in losses[:10])
    assert all(torch.equal(value, before[key]) for key, value in tiny_pipe.unet.state_dict().items())
    first, *others = eraser.edits
    assert isinstance(first, ModulationEdit)
    assert first.alpha.shape == (4, SKIPS)
    # Only the last bin's timestep was trained on.
    assert first.alpha[:3].unique().tolist() == pytest.approx([0.9])
    assert (first.alpha[3] - 0.9).abs().min() > 1e-3
    assert {edit.site.path for edit in others} == {site.path for site in weights(tiny_pipe.unet)}
    eraser.save(tmp_path / "gun")
    again = Eraser.load(tmp_path / "gun")
    assert again.digest == eraser.digest
    assert all(check.passed for check in verify(tmp_path / "gun"))
    with again.attach(tiny_pipe):
        edited = draw(tiny_pipe)
        assert np.array_equal(draw(tiny_pipe), edited)
        unguided = draw(tiny_pipe, guidance_scale=1.0)
    assert np.abs(edited - plain_ones).max() > 1e-3
    assert np.abs(unguided - draw(tiny_pipe, guidance_scale=1.0)).max() > 1e-3
    assert np.array_equal(draw(tiny_pipe), plain_ones)


def test_an_interrupted_training_goes_on_to_the_same_bits(tiny_pipe: Any, tmp_path: Path) -> None:
    whole = method("dumo").fit(tiny_pipe, CONCEPT, CONFIG)
    config = replace(CONFIG, checkpoint=str(tmp_path / "training"))
    steps: list[tuple[int, int]] = []

    def stop(step: int, count: int, loss: float) -> None:
        steps.append((step, count))
        if (step, count) in ((2, 4), (1, 2)):
            signal.raise_signal(signal.SIGINT)

    for _ in range(2):
        with watch_training(stop), pytest.raises(KeyboardInterrupt):
            method("dumo").fit(tiny_pipe, CONCEPT, config)
    with watch_training(stop):
        again = method("dumo").fit(tiny_pipe, CONCEPT, config)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4), (1, 2), (2, 2)]
    assert again.digest == whole.digest
    with pytest.raises(ExciseError, match="holds the checkpoint of another training"):
        method("dumo").fit(tiny_pipe, CONCEPT, replace(config, lr=2e-3))


def test_coefficients_may_be_left_at_one(tiny_pipe: Any) -> None:
    eraser = method("dumo").fit(tiny_pipe, CONCEPT, replace(CONFIG, alpha_iterations=0, keep=0.0))
    first = eraser.edits[0]
    assert isinstance(first, ModulationEdit)
    assert torch.equal(first.alpha, torch.ones(4, SKIPS))


def test_sdxl_is_told_what_else_it_reads() -> None:
    if (reason := tiny.missing("sdxl")) is not None:
        pytest.skip(reason)
    eraser = method("dumo").fit(tiny.build("sdxl"), CONCEPT, replace(CONFIG, iterations=1, alpha_iterations=1))
    assert eraser.canary_shift > 0


def test_bad_input_is_one_clear_line(tiny_pipe: Any) -> None:
    if tiny.missing("sd3") is None:
        with pytest.raises(ExciseError, match=r"dumo trains a U-Net, and .* has none"):
            method("dumo").fit(tiny.build("sd3"), CONCEPT, CONFIG)
    for values in ({"rank": 0}, {"bins": 0}, {"pairs": 0}, {"alpha_iterations": -1}, {"eta": -1.0}, {"keep": -1.0}):
        with pytest.raises(ExciseError, match="at least"):
            replace(CONFIG, **values)
    for values in ({"alpha_lr": 0.0}, {"alpha_first": 1.0}, {"eta": float("nan")}):
        with pytest.raises(ExciseError, match=next(iter(values))):
            replace(CONFIG, **values)
    for alpha in (torch.tensor([[1.1]]), torch.tensor([[-0.1]])):
        with pytest.raises(ExciseError, match="between 0 and 1"):
            ModulationEdit(SITE, alpha, 1000)
    for alpha, timesteps in ((torch.ones(3), 1000), (torch.ones(0, 3), 1000), (torch.ones(1, 3), 0)):
        with pytest.raises(ExciseError, match="not coefficients"):
            ModulationEdit(SITE, alpha, timesteps)
    with pytest.raises(ExciseError, match="not finite"):
        ModulationEdit(SITE, torch.full((1, 1), float("nan")), 1000)
    with pytest.raises(ExciseError, match=r"4 skip connections, .* 3 coefficients"):
        stirred(tiny_pipe, torch.ones(2, 3)).attach(tiny_pipe)
    with pytest.raises(ExciseError, match="has no time_proj"):
        skips_of(torch.nn.Linear(1, 1))


@pytest.mark.slow
def test_it_erases_from_the_bundled_model() -> None:
    pipe = reference.load()
    config = DuMoConfig(iterations=60, lr=2e-3, steps=10, bins=5, alpha_iterations=20, pairs=8)
    check_erases(pipe, method("dumo").fit(pipe, Canvas().concept("gun"), config))
