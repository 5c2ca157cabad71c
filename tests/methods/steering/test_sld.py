"""SLD: the same pictures as diffusers' own pipeline for it, and an eraser as any other."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipelineSafe
from diffusers.pipelines.deprecated.stable_diffusion_safe import SafetyConfig

from excise.concepts import Concept, Pair
from excise.erasers import Eraser, verify
from excise.erasers.edits.guidance import GuidanceEdit, away
from excise.errors import EraserDidNotFire, ExciseError
from excise.methods import method
from excise.methods.configs.steering import Level
from excise.methods.steering.sld import LEVELS
from excise.sites import Site

CONCEPT = Concept("gun", ("gun", "pistol"), (Pair("a gun on grass", "a cat on grass"),))
STEPS, PROMPTS = 6, ["a gun on grass", "a cat in the rain"]


def draw(pipe: Any, prompts: list[str] = PROMPTS, guidance: float = 30.0, **how: Any) -> np.ndarray:
    generator = [torch.Generator().manual_seed(n) for n in range(len(prompts))]
    how = {"num_inference_steps": STEPS, "guidance_scale": guidance, "output_type": "np", **how}
    made: np.ndarray = pipe(prompts, generator=generator, **how).images
    return made


def test_away_is_the_paper_s() -> None:
    generator = torch.Generator().manual_seed(0)
    without, prompt, unsafe = torch.randn(3, 2, 4, 3, 3, generator=generator)
    made = away(without, prompt, unsafe, 0.8, 0.1)
    for at in np.ndindex(*made.shape):
        apart = float(prompt[at] - unsafe[at])
        mu = min(1.0, 0.8 * abs(apart)) if apart < 0.1 else 0.0
        assert float(made[at]) == pytest.approx(mu * float(unsafe[at] - without[at]), abs=1e-6)


def test_the_levels_are_diffusers_but_for_the_weakest() -> None:
    for level in ("medium", "strong", "max"):
        theirs = getattr(SafetyConfig, level.upper())
        names = ("sld_warmup_steps", "sld_guidance_scale", "sld_threshold", "sld_momentum_scale", "sld_mom_beta")
        assert LEVELS[level] == tuple(theirs[name] for name in names)


@pytest.mark.parametrize("level", ["weak", "medium", "strong", "max"])
def test_it_draws_as_diffusers_does(tiny_pipe: Any, level: Level) -> None:
    """As diffusers' pipeline by the paper's authors; a random U-Net's predictions differ by little."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        safe = StableDiffusionPipelineSafe(
            **{name: part for name, part in tiny_pipe.components.items() if name != "image_encoder"},
            requires_safety_checker=False,
        )
    safe.set_progress_bar_config(disable=True)
    safe.safety_concept = "gun, pistol"
    warmup, scale, threshold, momentum, decay = LEVELS[level]
    wanted = draw(
        safe,
        sld_guidance_scale=scale,
        sld_warmup_steps=min(warmup, 2),
        sld_threshold=threshold,
        sld_momentum_scale=momentum,
        sld_mom_beta=decay,
    )
    config = method("sld").Config(level=level, warmup=min(warmup, 2))
    plain = draw(tiny_pipe)
    with method("sld").fit(tiny_pipe, CONCEPT, config).attach(tiny_pipe):
        made = draw(tiny_pipe)
    assert np.abs(made - wanted).max() < 0.02 * np.abs(made - plain).max()
    assert np.abs(made - plain).max() > 1e-5
    assert np.array_equal(draw(tiny_pipe), plain)


@pytest.mark.usefixtures("short_removal")
def test_it_is_saved_and_scaled_as_any_other(tiny_pipe: Any, tmp_path: Path) -> None:
    assert method("sld").fit(tiny_pipe, CONCEPT, method("sld").Config(level="max", scale=300)).edits[0].scale == 300
    eraser = method("sld").fit(tiny_pipe, CONCEPT, method("sld").Config(level="max"))
    assert eraser.edits[0].scale == 5000
    eraser.save(tmp_path / "gun")
    again = Eraser.load(tmp_path / "gun")
    assert again.digest == eraser.digest
    assert all(check.passed for check in verify(tmp_path / "gun"))
    plain = draw(tiny_pipe)
    with again.attach(tiny_pipe) as attachment:
        whole = draw(tiny_pipe)
        assert np.array_equal(draw(tiny_pipe), whole)
        attachment.strength = 0.5
        half = draw(tiny_pipe)
        attachment.strength = 0.0
        assert np.array_equal(draw(tiny_pipe), plain)
    assert 0 < np.abs(half - plain).mean() < np.abs(whole - plain).mean()
    assert not [n for n, m in tiny_pipe.unet.named_modules() if "forward" in vars(m) or m._forward_pre_hooks]


def test_a_negative_prompt_is_guided_away_from_too(tiny_pipe: Any) -> None:
    plain = draw(tiny_pipe, negative_prompt=["blue", "red"])
    with method("sld").fit(tiny_pipe, CONCEPT).attach(tiny_pipe):
        assert np.abs(draw(tiny_pipe, negative_prompt=["blue", "red"]) - plain).max() > 1e-5


def test_what_it_cannot_steer_is_refused(tiny_pipe: Any) -> None:
    eraser = method("sld").fit(tiny_pipe, CONCEPT)
    embeds = tiny_pipe.encode_prompt("a dog runs", "cpu", 1, False)[0]
    with eraser.attach(tiny_pipe):
        with pytest.raises(ExciseError, match="guidance_scale above 1"):
            draw(tiny_pipe, guidance=1.0)
        with pytest.raises(EraserDidNotFire, match="not encoded under eraser"):
            tiny_pipe(prompt_embeds=embeds, negative_prompt_embeds=embeds, num_inference_steps=2, output_type="latent")
        known = tiny_pipe.encode_prompt("a gun on grass", "cpu", 1, True)
        tiny_pipe(prompt_embeds=known[0], negative_prompt_embeds=known[1], num_inference_steps=2, output_type="latent")


def test_impossible_settings_are_refused(tiny_pipe: Any) -> None:
    with pytest.raises(ExciseError, match="weak, medium, strong, max"):
        method("sld").Config(level="severe")
    with pytest.raises(ExciseError, match="at least"):
        method("sld").Config(scale=-1.0)
    site = Site("unet", "", 4)
    values = {"scale": 1.0, "threshold": 0.0, "warmup": 0, "momentum": 0.0}
    with pytest.raises(ExciseError, match="decay"):
        GuidanceEdit(site, torch.zeros(3, 4), **values, decay=2.0)
    with pytest.raises(ExciseError, match="not text states"):
        GuidanceEdit(site, torch.zeros(4), **values, decay=0.0)
    with pytest.raises(ExciseError, match="must be a number"):
        GuidanceEdit(site, torch.zeros(3, 4), **{**values, "scale": float("nan")}, decay=0.0)
