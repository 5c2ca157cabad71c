"""ESD: the loss is the paper's, the training goes on to the bit, and what comes out is an eraser as any other."""

from __future__ import annotations

import copy
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from excise.concepts import Concept, Pair
from excise.erasers import Eraser, WeightEdit, verify
from excise.errors import ExciseError
from excise.methods import method
from excise.methods.configs.trained import ESDConfig
from excise.methods.trained.esd import esd_target, fit, objective, weights
from excise.methods.trained.sampling import encode_conditioning, frozen_unet, sample_partly
from excise.methods.trained.trainer import Student, watch_training
from tests import tiny

CONCEPT = Concept("gun", ("gun",), (Pair("a gun on grass", "a cat on grass"),))
CONFIG = ESDConfig(iterations=6, lr=1e-3, steps=3, batch=2, eta=1.5)
PROMPT = "a gun on grass"


def draw(pipe: Any) -> np.ndarray:
    how = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
    made: np.ndarray = pipe(PROMPT, generator=torch.Generator().manual_seed(3), **how).images
    return made


def test_pictures_are_drawn_as_the_pipeline_draws_them(tiny_pipe: Any) -> None:
    """All steps but the last by hand, then the pipeline's own latents before its last step."""
    seen: list[torch.Tensor] = []
    handle = tiny_pipe.unet.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    generator = torch.Generator().manual_seed(5)
    tiny_pipe("gun", num_inference_steps=3, guidance_scale=2.5, generator=generator, output_type="latent")
    handle.remove()
    last = float(tiny_pipe.scheduler.timesteps[2])
    sides = encode_conditioning(tiny_pipe, "gun", "esd-x"), encode_conditioning(tiny_pipe, "", "esd-x")
    made, timestep = sample_partly(
        tiny_pipe,
        frozen_unet(tiny_pipe),
        *sides,
        torch.Generator().manual_seed(5),
        count=1,
        steps=3,
        done=2,
        guidance=2.5,
    )
    torch.testing.assert_close(made, seen[2][:1], atol=1e-3, rtol=1e-3)
    assert float(timestep) == last


def test_the_loss_is_equation_7(tiny_pipe: Any) -> None:
    sides, empty = [encode_conditioning(tiny_pipe, "gun", "esd-x")], encode_conditioning(tiny_pipe, "", "esd-x")
    student = Student(tiny_pipe.unet, weights(tiny_pipe, attention=True))
    with torch.no_grad():
        for n, change in enumerate(student.changes.values()):
            change.normal_(0, 0.1, generator=torch.Generator().manual_seed(n))
    made = objective(tiny_pipe, student, frozen_unet(tiny_pipe), sides, empty, torch.Generator().manual_seed(7), CONFIG)
    written = copy.deepcopy(tiny_pipe.unet)
    for site, change in student.changes.items():
        written.get_submodule(site.path).weight.data += change.detach()
    generator = torch.Generator().manual_seed(7)
    torch.randint(1, (1,), generator=generator)
    done = int(torch.randint(3, (1,), generator=generator))
    scheduler = copy.deepcopy(tiny_pipe.scheduler)
    scheduler.set_timesteps(3)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    words, nothing = (tiny_pipe.encode_prompt(t, "cpu", 1, False)[0].repeat(2, 1, 1) for t in ("gun", ""))
    with torch.no_grad():
        for t in scheduler.timesteps[:done]:
            without = tiny_pipe.unet(x, t, nothing).sample
            x = scheduler.step(without + 3.0 * (tiny_pipe.unet(x, t, words).sample - without), t, x).prev_sample
        t = scheduler.timesteps[done]
        before, after = tiny_pipe.unet(x, t, nothing).sample, tiny_pipe.unet(x, t, words).sample
        wanted = F.mse_loss(written(x, t, words).sample, before - 1.5 * (after - before))
    assert float(made.detach()) == pytest.approx(float(wanted), rel=1e-4)
    assert float(made.detach()) > 0


def test_the_target_lies_eta_beyond_the_unconditional_prediction() -> None:
    """ε - η (ε_c - ε), worked out by hand: 1 - 2 (4 - 1) = -5, and 2 - 2 (0 - 2) = 6."""
    target = esd_target(torch.tensor([4.0, 0.0]), torch.tensor([1.0, 2.0]), 2.0)
    assert target.tolist() == [-5.0, 6.0]


def test_the_default_target_is_the_authors_code_s() -> None:
    """esd_sd.py: ε_c - negative_guidance (ε_c - ε), with negative_guidance = 2."""
    with_it, without = torch.tensor([4.0, 0.0]), torch.tensor([1.0, 2.0])
    authors = with_it - 2 * (with_it - without)
    assert torch.equal(esd_target(with_it, without, ESDConfig().eta), authors)


def test_changed_weights_are_summed_once_until_they_change(tiny_pipe: Any) -> None:
    own = weights(tiny_pipe, attention=True)
    student = Student(tiny_pipe.unet, own)
    (site, change), *_ = student.changes.items()
    name = next(name for name, parameter in tiny_pipe.unet.named_parameters() if parameter is own[site])
    with torch.no_grad():
        first = student.weights()
        assert student.weights() is first
        change += 1
        assert torch.equal(student.weights()[name], first[name] + 1)
    assert student.weights()[name].requires_grad  # where gradients are asked for, they reach the changes


@pytest.mark.usefixtures("short_removal")
@pytest.mark.parametrize("name", ["esd-x", "esd-u"])
def test_training_lowers_the_loss_and_makes_an_eraser(tiny_pipe: Any, name: str, tmp_path: Path) -> None:
    calls: list[tuple[int, int, float]] = []
    before = {key: value.clone() for key, value in tiny_pipe.unet.state_dict().items()}
    with watch_training(lambda *line: calls.append(line)):
        lr = {"esd-x": 1e-3, "esd-u": 1e-4}[name]
        eraser = method(name).fit(tiny_pipe, CONCEPT, replace(CONFIG, iterations=20, steps=1, lr=lr))
    assert [line[:2] for line in calls] == [(n + 1, 20) for n in range(20)]
    assert calls[-1][2] < 0.8 * calls[0][2]
    assert all(torch.equal(value, before[key]) for key, value in tiny_pipe.unet.state_dict().items())
    paths = {edit.site.path for edit in eraser.edits}
    layers = {n for n, m in tiny_pipe.unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert paths == {path for path in layers if (".attn2." in path) is (name == "esd-x")}
    plain_one = draw(tiny_pipe)
    eraser.save(tmp_path / "gun")
    assert all(check.passed for check in verify(tmp_path / "gun"))
    with Eraser.load(tmp_path / "gun").attach(tiny_pipe):
        assert not np.array_equal(draw(tiny_pipe), plain_one)
    assert np.array_equal(draw(tiny_pipe), plain_one)


def test_an_interrupted_training_goes_on_to_the_same_bits(tiny_pipe: Any, tmp_path: Path) -> None:
    whole = method("esd-x").fit(tiny_pipe, CONCEPT, CONFIG)
    config = replace(CONFIG, checkpoint=str(tmp_path / "training"))

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with watch_training(stop), pytest.raises(KeyboardInterrupt):
        method("esd-x").fit(tiny_pipe, CONCEPT, config)
    steps: list[int] = []
    with watch_training(lambda step, *_: steps.append(step)):
        again = method("esd-x").fit(tiny_pipe, CONCEPT, config)
    assert steps == [3, 4, 5, 6]
    assert again.digest == whole.digest
    for one, other in zip(again.edits, whole.edits, strict=True):
        assert isinstance(one, WeightEdit)
        assert isinstance(other, WeightEdit)
        assert torch.equal(one.change(), other.change())
    with pytest.raises(ExciseError, match="holds the checkpoint of another training"):
        method("esd-x").fit(tiny_pipe, CONCEPT, replace(config, lr=2e-3))
    with torch.no_grad():
        tiny_pipe.text_encoder.get_input_embeddings().weight.mul_(1.01)
    with pytest.raises(ExciseError, match="holds the checkpoint of another training"):
        method("esd-x").fit(tiny_pipe, CONCEPT, config)
    with torch.no_grad():
        tiny_pipe.text_encoder.get_input_embeddings().weight.div_(1.01)
    (tmp_path / "training" / "state.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ExciseError, match="is damaged"):
        method("esd-x").fit(tiny_pipe, CONCEPT, config)


def test_what_is_attached_does_not_teach(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """The teacher is the model itself, and so are the pictures it is asked about."""
    alone = method("esd-x").fit(tiny_pipe, CONCEPT, replace(CONFIG, iterations=2))
    with gun_eraser.attach(tiny_pipe):
        assert method("esd-x").fit(tiny_pipe, CONCEPT, replace(CONFIG, iterations=2)).digest == alone.digest


def test_what_cannot_be_trained_is_refused(tiny_pipe: Any) -> None:
    beyond = replace(CONFIG)
    object.__setattr__(beyond, "lr", 1e30)  # past the bounds
    with pytest.raises(ExciseError, match="the loss is not finite"):
        fit(tiny_pipe, CONCEPT, beyond, method="esd-x", attention=True)
    for values in ({"iterations": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"steps": 0}, {"batch": 0}):
        with pytest.raises(ExciseError):
            replace(CONFIG, **values)
    if tiny.missing("sd3") is None:
        with pytest.raises(ExciseError, match=r"esd-x trains a U-Net, and .* has none"):
            method("esd-x").fit(tiny.build("sd3"), CONCEPT, CONFIG)


def test_sdxl_is_told_what_else_it_reads() -> None:
    if (reason := tiny.missing("sdxl")) is not None:
        pytest.skip(reason)
    pipe = tiny.build("sdxl")
    eraser = method("esd-x").fit(pipe, CONCEPT, replace(CONFIG, iterations=1))
    assert eraser.canary_shift > 0
