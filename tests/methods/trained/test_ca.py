"""CA: both losses are the paper's, the anchor is what stands in the concept's place, and an eraser comes out."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from excise import reference
from excise.bench.canvas.suite import Canvas
from excise.concepts import Concept
from excise.erasers import Eraser, verify
from excise.errors import ExciseError
from excise.methods import method
from excise.methods.configs.trained import CAConfig, ReplayConfig
from excise.methods.trained.ca import layers, objective
from excise.methods.trained.replay import encode_each, prompt_pairs, training_schedule
from excise.methods.trained.sampling import encode_conditioning, frozen_unet, sample
from excise.methods.trained.trainer import Student, watch_training
from tests import tiny
from tests.methods.trained.replaying import (
    CONCEPT,
    check_erases,
    close,
    loss_by_hand,
    noise_by_hand,
    predicting,
    render,
    some_pictures,
    states,
    stirred,
)

CONFIG = CAConfig(iterations=6, lr=1e-3, batch=2, pictures=3, steps=2)


def test_finished_pictures_are_the_pipelines(tiny_pipe: Any) -> None:
    how = {"num_inference_steps": 4, "guidance_scale": 2.5, "output_type": "latent"}
    wanted = tiny_pipe(["gun", "a cat"], generator=torch.Generator().manual_seed(5), **how).images
    prompts, empty = encode_each(tiny_pipe, ["gun", "a cat"], "ca"), encode_conditioning(tiny_pipe, "", "ca")
    generator = torch.Generator().manual_seed(5)
    made = sample(tiny_pipe, frozen_unet(tiny_pipe), prompts, empty, generator, steps=4, guidance=2.5)
    torch.testing.assert_close(made, wanted, atol=1e-3, rtol=1e-3)


def test_noise_at_every_step_is_the_generators(tiny_pipe: Any) -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    tiny_pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(tiny_pipe.scheduler.config)
    one, other = (some_pictures(tiny_pipe, ["gun", "a cat"], CONFIG).latents for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("variant", "keep"), [("model", 0.0), ("model", 0.7), ("noise", 0.0), ("noise", 0.7)])
def test_the_loss_is_the_papers(tiny_pipe: Any, kind: str, variant: str, keep: float) -> None:
    pipe, config = predicting(tiny_pipe, kind), replace(CONFIG, variant=variant, keep=keep, batch=4)
    anchors, words = (["a cat on grass", "two dogs"], ["a gun on grass", "two guns"])
    pictures = some_pictures(pipe, anchors, config)
    student, schedule = Student(pipe.unet, layers(pipe, config)), training_schedule(pipe, "ca")
    written, generator = stirred(student), torch.Generator().manual_seed(7)
    made = objective(schedule, student, frozen_unet(pipe), pictures, encode_each(pipe, words, "ca"), generator, config)
    generator = torch.Generator().manual_seed(7)
    some = torch.randint(2, (4,), generator=generator).tolist()
    wanted = torch.zeros(())
    with torch.no_grad():
        for n, (x, t, aim) in zip(some, noise_by_hand(pipe, pictures.latents[some], generator), strict=True):
            if variant == "model":
                aim = pipe.unet(x, t, states(pipe, anchors[n])).sample
            wanted += (written(x, t, states(pipe, words[n])).sample - aim).square().mean() / 4
        if keep:
            wanted += keep * loss_by_hand(pipe, written, pictures, anchors, generator, 4)
    close(made, wanted)


def test_the_anchor_is_what_stands_in_the_concepts_place() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = prompt_pairs(CONCEPT, "", 6, generator, "anchor")
    assert set(pairs[:3]) == {(pair.concept, pair.deconcept) for pair in CONCEPT.pairs}
    assert pairs[3:] == pairs[:3]
    named = prompt_pairs(CONCEPT, r"\1 cow", 3, generator, "anchor")
    assert set(named) == {
        ("a gun on grass", r"a \1 cow on grass"),
        ("two guns", r"two \1 cow"),
        ("the gun", r"the \1 cow"),
    }
    alone = Concept("gun", ("gun", "pistol"))
    assert set(prompt_pairs(alone, "cat", 2, generator, "anchor")) == {("gun", "cat"), ("pistol", "cat")}


@pytest.mark.usefixtures("short_removal")
@pytest.mark.parametrize("settings", [{}, {"variant": "noise", "weights": "all", "lr": 3e-3, "anchor": "cat"}])
def test_training_lowers_the_loss_and_makes_an_eraser(tiny_pipe: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    losses: list[float] = []
    before = {key: value.clone() for key, value in tiny_pipe.unet.state_dict().items()}
    config = replace(CONFIG, **{"iterations": 40, "lr": 1e-2, "batch": 8, **settings})
    with watch_training(lambda step, steps, loss: losses.append(loss)):
        eraser = method("ca").fit(tiny_pipe, CONCEPT, config)
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    assert all(torch.equal(value, before[key]) for key, value in tiny_pipe.unet.state_dict().items())
    paths = {edit.site.path for edit in eraser.edits}
    assert all(path.endswith((".attn2.to_k", ".attn2.to_v")) for path in paths) is (config.weights != "all")
    plain_one = render(tiny_pipe)
    eraser.save(tmp_path / "gun")
    assert all(check.passed for check in verify(tmp_path / "gun"))
    with Eraser.load(tmp_path / "gun").attach(tiny_pipe):
        assert not np.array_equal(render(tiny_pipe), plain_one)
    assert np.array_equal(render(tiny_pipe), plain_one)


def test_an_interrupted_training_goes_on_to_the_same_bits(tiny_pipe: Any, tmp_path: Path) -> None:
    whole = method("ca").fit(tiny_pipe, CONCEPT, CONFIG)
    config = replace(CONFIG, checkpoint=str(tmp_path / "training"))

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with watch_training(stop), pytest.raises(KeyboardInterrupt):
        method("ca").fit(tiny_pipe, CONCEPT, config)
    steps: list[int] = []
    with watch_training(lambda step, *_: steps.append(step)):
        assert method("ca").fit(tiny_pipe, CONCEPT, config).digest == whole.digest
    assert steps == [3, 4, 5, 6]
    with pytest.raises(ExciseError, match="holds the checkpoint of another training"):
        method("ca").fit(tiny_pipe, CONCEPT, replace(config, anchor="cow"))


def test_what_cannot_be_trained_is_refused(tiny_pipe: Any) -> None:
    with pytest.raises(ExciseError, match="anchor 'two guns' is 'gun', which is to be erased"):
        method("ca").fit(tiny_pipe, CONCEPT, replace(CONFIG, anchor="two guns"))
    with pytest.raises(ExciseError, match=r"'gun' has no pairs .* name it with anchor"):
        method("ca").fit(tiny_pipe, replace(CONCEPT, pairs=()), CONFIG)
    with pytest.raises(ExciseError, match=r"DPMSolverMultistepScheduler says sample; choose another method"):
        method("ca").fit(predicting(tiny_pipe, "sample"), CONCEPT, CONFIG)
    for values in ({"variant": "both"}, {"weights": "some"}, {"keep": -1.0}, {"pictures": 0}, {"steps": 0}):
        with pytest.raises(ExciseError):
            replace(CONFIG, **values)
    with pytest.raises(ExciseError, match="guidance is nan; it must be a number"):
        ReplayConfig(guidance=float("nan"))
    if tiny.missing("sd3") is None:
        with pytest.raises(ExciseError, match=r"ca trains a U-Net, and .* has none"):
            method("ca").fit(tiny.build("sd3"), CONCEPT, CONFIG)


def test_sdxl_is_told_what_else_it_reads() -> None:
    if (reason := tiny.missing("sdxl")) is not None:
        pytest.skip(reason)
    eraser = method("ca").fit(tiny.build("sdxl"), CONCEPT, replace(CONFIG, iterations=1))
    assert eraser.canary_shift > 0


@pytest.mark.slow
def test_it_erases_from_the_bundled_model() -> None:
    pipe = reference.load()
    config = CAConfig(pictures=8, steps=10, guidance=4.0, iterations=25, batch=4, lr=1e-3)
    check_erases(pipe, method("ca").fit(pipe, Canvas().concept("gun"), config))
