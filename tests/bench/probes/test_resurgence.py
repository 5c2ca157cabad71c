"""The probe `resurgence`: what it trains on, and that the model is as it was afterwards."""

from __future__ import annotations

import random

import pytest
import torch

import excise
from excise import reference
from excise.bench.attacks.denoising import denoised, noised
from excise.bench.canvas.suite import Canvas
from excise.bench.latents import encoded
from excise.bench.probes import resurgence
from excise.bench.probes.resurgence import fine_tuned
from excise.pipeline import as_diffusers
from excise.reference.scenes import Scene, render, sample_scene

pytestmark = pytest.mark.usefixtures("one_bundled_pipe")


def digest(pipe: object) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in as_diffusers(pipe).unet.parameters()]  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["snce", "uce", "esd-x"])
def test_the_weights_are_put_back_bit_for_bit(method: str) -> None:
    pipe = reference.load()
    settings = {"steps": 2, "iterations": 2} if method == "esd-x" else {}
    with excise.erase(pipe, Canvas().concept("gun"), method=method, **settings).attach(pipe):
        before = digest(pipe)
        with fine_tuned(pipe, "gun", 2):
            moved = digest(pipe)
            assert not any(weight.requires_grad for weight in as_diffusers(pipe).unet.parameters())
        after = digest(pipe)
    assert any(not torch.equal(a, b) for a, b in zip(before, moved, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_error_puts_them_back_too() -> None:
    pipe = reference.load()
    before = digest(pipe)
    with pytest.raises(RuntimeError, match="stop"), fine_tuned(pipe, "gun", 1):
        raise RuntimeError("stop")
    assert all(torch.equal(a, b) for a, b in zip(before, digest(pipe), strict=True))


def test_no_scene_holds_the_concept_and_runs_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Scene] = []

    def spy(scene: Scene) -> object:
        seen.append(scene)
        return render(scene)

    monkeypatch.setattr(resurgence, "render", spy)
    pipe = reference.load()
    ends = []
    for _ in range(2):
        with fine_tuned(pipe, "gun", 3):
            ends.append(digest(pipe))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert len(seen) == 2 * 3 * resurgence.BATCH and not any("gun" in scene.objects for scene in seen)
    with fine_tuned(pipe, "ink", 2):
        assert not any(scene.style == "ink" for scene in seen[-2 * resurgence.BATCH :])


def test_a_step_is_adamws_on_the_denoising_loss() -> None:
    """One step by hand: AdamW's first step is the rate times the sign of the slope, after decay."""
    pipe = reference.load()
    unet = as_diffusers(pipe).unet
    name, weight = next((n, w) for n, w in unet.named_parameters() if n == "conv_in.weight")
    old = weight.detach().clone()
    with fine_tuned(pipe, "gun", 1):
        new = weight.detach().clone()
    rng, draw = random.Random("resurgence gun"), torch.Generator().manual_seed(0)
    scenes: list[Scene] = []
    while len(scenes) < resurgence.BATCH:
        scene = sample_scene(rng)
        scenes += [scene] * ("gun" not in scene.objects)
    captions = [resurgence.sample_caption(rng, scene) for scene in scenes]
    clean = encoded(pipe, resurgence.np.stack([render(scene) for scene in scenes]))
    spoilt, times, wanted = noised(pipe, clean, draw)
    weight.requires_grad_()
    with torch.enable_grad():
        loss = (denoised(pipe, spoilt, times, captions) - wanted).square().mean()
        (slope,) = torch.autograd.grad(loss, weight)
    weight.requires_grad_(False)
    expected = old * (1 - resurgence.RATE * 0.01) - resurgence.RATE * slope / (slope.abs() + 1e-8)
    clear = slope.abs() > 1e-5
    assert clear.float().mean() > 0.5 and name
    assert torch.allclose(new[clear], expected[clear], atol=2e-6)
