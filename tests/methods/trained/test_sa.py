"""SA: the losses, the Fisher information and what it holds fast are the paper's, and an eraser comes out."""

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
from excise.erasers import Eraser, verify
from excise.errors import ExciseError
from excise.methods import method
from excise.methods.configs.trained import SAConfig
from excise.methods.trained.replay import Pictures, encode_each, training_schedule
from excise.methods.trained.sa import fisher, forgetting_penalty, layers, objective, other_prompts
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

CONFIG = SAConfig(iterations=6, lr=1e-3, batch=2, pictures=3, fisher=3, timesteps=2, steps=2)
OTHERS = ["a tree", "a bus"]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_losses_are_the_papers(tiny_pipe: Any, kind: str) -> None:
    pipe, config = predicting(tiny_pipe, kind), replace(CONFIG, keep=0.7, batch=3)
    words = ["a gun on grass", "two guns"]
    learnt, replayed = (some_pictures(pipe, prompts, config) for prompts in (["a cat on grass", "two dogs"], OTHERS))
    forgotten = Pictures(learnt.latents, encode_each(pipe, words, "sa"))
    student, schedule = Student(pipe.unet, layers(pipe, config)), training_schedule(pipe, "sa")
    written, generator = stirred(student), torch.Generator().manual_seed(7)
    made = objective(schedule, student, forgotten, replayed, generator, config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        wanted = loss_by_hand(pipe, written, learnt, words, generator, 3)
        wanted += 0.7 * loss_by_hand(pipe, written, replayed, OTHERS, generator, 3)
    close(made, wanted)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_fisher_information_is_the_mean_of_squared_gradients(tiny_pipe: Any, kind: str) -> None:
    """Picture by picture, timestep by timestep, by the gradients of the U-Net's own weights."""
    pipe = predicting(tiny_pipe, kind)
    pictures, schedule = some_pictures(pipe, OTHERS, CONFIG), training_schedule(pipe, "sa")
    student = Student(pipe.unet, layers(pipe, replace(CONFIG, weights="all")))
    made = fisher(student, schedule, pictures, student.changes, torch.Generator().manual_seed(7), 3)
    wanted = {site: torch.zeros_like(change) for site, change in made.items()}
    generator = torch.Generator().manual_seed(7)
    for n, prompt in enumerate(OTHERS):
        clean = torch.cat([pictures.latents[n : n + 1]] * 3)
        pipe.unet.zero_grad()
        for x, t, aim in noise_by_hand(pipe, clean, generator):
            loss = (pipe.unet(x, t, states(pipe, prompt)).sample - aim).square().mean()
            (1000 / 3 * loss).backward()
        for site, total in wanted.items():
            slope = pipe.unet.get_submodule(site.path).weight.grad
            total += slope * slope / 2
    for site, one in made.items():
        torch.testing.assert_close(one, wanted[site], rtol=1e-3, atol=1e-5 * float(wanted[site].max()))
    assert sum(float(one.sum()) for one in made.values()) > 0


def test_what_is_held_fast_is_weighed_by_it(tiny_pipe: Any) -> None:
    student = Student(tiny_pipe.unet, layers(tiny_pipe, CONFIG))
    stirred(student)
    importance = {site: torch.rand_like(change) for site, change in student.changes.items()}
    wanted = 0.0
    for site, change in student.changes.items():
        for f, moved in zip(importance[site].flatten().tolist(), change.flatten().tolist(), strict=True):
            wanted += 3.0 / 2 * f * moved**2
    made = forgetting_penalty(student.changes, importance, 3.0)
    close(made, torch.tensor(wanted))
    (slope, *_) = torch.autograd.grad(made, list(student.changes.values()))
    site, change = next(iter(student.changes.items()))
    torch.testing.assert_close(slope, 3.0 * importance[site] * change)


def test_other_prompts_are_the_controls() -> None:
    generator = torch.Generator().manual_seed(0)
    assert set(other_prompts(CONCEPT, 3, generator)) == set(CONCEPT.controls)
    own = replace(CONCEPT, controls=("a gun", "a bus"))
    assert other_prompts(own, 2, generator) == ["a bus", "a bus"]
    without = replace(CONCEPT, controls=())
    assert set(other_prompts(without, 3, generator)) == {"a cat on grass", "two dogs", "the rose"}


@pytest.mark.usefixtures("short_removal")
@pytest.mark.parametrize(("weights", "lr"), [("cross-attention", 0.1), ("rest", 3e-3)])
def test_training_lowers_the_loss_and_makes_an_eraser(tiny_pipe: Any, weights: str, lr: float, tmp_path: Path) -> None:
    losses: list[float] = []
    before = {key: value.clone() for key, value in tiny_pipe.unet.state_dict().items()}
    config = replace(CONFIG, iterations=40, lr=lr, batch=4, weights=weights, lam=0.0, surrogate="cat")
    with watch_training(lambda step, steps, loss: losses.append(loss)):
        eraser = method("sa").fit(tiny_pipe, CONCEPT, config)
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    assert all(torch.equal(value, before[key]) for key, value in tiny_pipe.unet.state_dict().items())
    inside = {".attn2." in edit.site.path for edit in eraser.edits}
    assert inside == {weights == "cross-attention"}
    plain_one = render(tiny_pipe)
    eraser.save(tmp_path / "gun")
    assert all(check.passed for check in verify(tmp_path / "gun"))
    with Eraser.load(tmp_path / "gun").attach(tiny_pipe):
        assert not np.array_equal(render(tiny_pipe), plain_one)
    assert np.array_equal(render(tiny_pipe), plain_one)


def test_the_more_is_held_the_less_moves(tiny_pipe: Any) -> None:
    moved = []
    for lam in (0.0, 50.0, 1e6):
        eraser = method("sa").fit(tiny_pipe, CONCEPT, replace(CONFIG, lam=lam, iterations=20))
        moved.append(sum(edit.coefficient[1] for edit in eraser.edits))
    assert moved[0] > moved[1] > moved[2]


def test_an_interrupted_training_goes_on_to_the_same_bits(tiny_pipe: Any, tmp_path: Path) -> None:
    whole = method("sa").fit(tiny_pipe, CONCEPT, CONFIG)
    config = replace(CONFIG, checkpoint=str(tmp_path / "training"))

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with watch_training(stop), pytest.raises(KeyboardInterrupt):
        method("sa").fit(tiny_pipe, CONCEPT, config)
    steps: list[int] = []
    with watch_training(lambda step, *_: steps.append(step)):
        assert method("sa").fit(tiny_pipe, CONCEPT, config).digest == whole.digest
    assert steps == [3, 4, 5, 6]
    with pytest.raises(ExciseError, match="holds the checkpoint of another training"):
        method("sa").fit(tiny_pipe, replace(CONCEPT, controls=("a house",)), config)


def test_what_cannot_be_trained_is_refused(tiny_pipe: Any) -> None:
    with pytest.raises(ExciseError, match="surrogate 'a gun' is 'gun', which is to be erased"):
        method("sa").fit(tiny_pipe, CONCEPT, replace(CONFIG, surrogate="a gun"))
    with pytest.raises(ExciseError, match="'gun' has neither controls nor pairs"):
        method("sa").fit(tiny_pipe, replace(CONCEPT, pairs=(), controls=()), replace(CONFIG, surrogate="cat"))
    with pytest.raises(ExciseError, match="says sample; choose another method"):
        method("sa").fit(predicting(tiny_pipe, "sample"), CONCEPT, CONFIG)
    for values in ({"weights": "some"}, {"lam": -1.0}, {"keep": float("nan")}, {"fisher": 0}, {"timesteps": 0}):
        with pytest.raises(ExciseError):
            replace(CONFIG, **values)
    if tiny.missing("sd3") is None:
        with pytest.raises(ExciseError, match=r"sa trains a U-Net, and .* has none"):
            method("sa").fit(tiny.build("sd3"), CONCEPT, CONFIG)


def test_sdxl_is_told_what_else_it_reads() -> None:
    if (reason := tiny.missing("sdxl")) is not None:
        pytest.skip(reason)
    eraser = method("sa").fit(tiny.build("sdxl"), CONCEPT, replace(CONFIG, iterations=2, timesteps=1))
    assert eraser.canary_shift > 0


@pytest.mark.slow
def test_it_erases_from_the_bundled_model() -> None:
    pipe = reference.load()
    how: dict[str, Any] = {"pictures": 8, "fisher": 4, "steps": 10, "guidance": 4.0, "timesteps": 4}
    config = SAConfig(iterations=40, batch=4, lr=2e-3, lam=0.01, **how)
    check_erases(pipe, method("sa").fit(pipe, Canvas().concept("gun"), config))
