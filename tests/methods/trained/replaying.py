"""What the tests of methods that train on a model's own pictures share: the formulas, written out by hand."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from excise import reference
from excise.bench.canvas.families import cases
from excise.bench.canvas.suite import Canvas
from excise.concepts import Concept, Pair
from excise.erasers import Eraser
from excise.methods.configs.trained import ReplayConfig
from excise.methods.trained.replay import Pictures, encode_each, generate_pictures
from excise.methods.trained.trainer import Student

CONCEPT = Concept(
    "gun",
    ("gun",),
    (Pair("a gun on grass", "a cat on grass"), Pair("two guns", "two dogs"), Pair("the gun", "the rose")),
    ("a tree", "a crown on sand", "a bus"),
)


def render(pipe: Any) -> np.ndarray:
    how = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
    made: np.ndarray = pipe("a gun on grass", generator=torch.Generator().manual_seed(3), **how).images
    return made


def predicting(pipe: Any, kind: str) -> Any:
    """The pipeline, which from now on is held to predict noise or velocity."""
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=kind)
    return pipe


def stirred(student: Student) -> Any:
    """A copy of the student's U-Net with random changes written into it, as the student has them from now on."""
    written = copy.deepcopy(student.denoiser)
    for n, (site, change) in enumerate(student.changes.items()):
        with torch.no_grad():
            change.normal_(0, 5, generator=torch.Generator().manual_seed(n))
        written.get_submodule(site.path).weight.data += change.detach()
    return written


def some_pictures(pipe: Any, prompts: list[str], config: ReplayConfig) -> Pictures:
    return generate_pictures(pipe, encode_each(pipe, prompts, "test"), config, torch.Generator().manual_seed(1), "test")


def states(pipe: Any, prompt: str) -> Tensor:
    made: Tensor = pipe.encode_prompt(prompt, "cpu", 1, False)[0]
    return made


def noise_by_hand(pipe: Any, clean: Tensor, generator: torch.Generator) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of every picture: with noise, its timestep, and what is to be predicted; the schedule is DDPM's linear one."""
    shares, share = [], 1.0
    for n in range(1000):
        share *= 1 - (1e-4 + (0.02 - 1e-4) * n / 999)
        shares.append(share)
    steps = torch.randint(1000, (len(clean),), generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    rows = []
    for x, t, e in zip(clean, steps, noise, strict=True):
        a, s = shares[int(t)] ** 0.5, (1 - shares[int(t)]) ** 0.5
        aim = e if pipe.scheduler.config.prediction_type == "epsilon" else a * e - s * x
        rows.append(((a * x + s * e)[None], t, aim[None]))
    return rows


def loss_by_hand(
    pipe: Any, unet: Any, pictures: Pictures, prompts: list[str], generator: torch.Generator, batch: int
) -> Tensor:
    """The loss the model was trained with, picture by picture."""
    some = torch.randint(len(prompts), (batch,), generator=generator).tolist()
    rows = noise_by_hand(pipe, pictures.latents[some], generator)
    losses = [
        (unet(x, t, states(pipe, prompts[n])).sample - aim).square().mean()
        for n, (x, t, aim) in zip(some, rows, strict=True)
    ]
    return torch.stack(losses).sum() / batch


def check_erases(pipe: Any, eraser: Eraser) -> None:
    """On the bundled model: a gun that was drawn is drawn no more in half of the pictures at least."""
    shown = [case for case in cases("gun", 6) if case.family == "direct"]

    def seen() -> int:
        prompts, seeds = [case.prompt for case in shown], [case.seed for case in shown]
        pictures = reference.generate(pipe, prompts, seeds, steps=10, batch_size=len(shown))
        return sum(int(row["target"]) for row in Canvas().judge(shown, pictures))

    before = seen()
    with eraser.attach(pipe):
        after = seen()
    assert before >= 5
    assert after <= before - 3, f"{before} before, {after} after"


def close(made: Tensor, wanted: Tensor) -> None:
    assert float(made.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert float(made.detach()) > 0
