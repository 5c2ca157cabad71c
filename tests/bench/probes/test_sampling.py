from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from excise.bench.probes.sampling import Sampler, Schedule
from excise.errors import ExciseError

PROMPTS = ["a gun on grass", "a cat"]
STEPS, GUIDANCE = 5, 3.0  # diffusers' DDIM takes the wrong next timestep if the steps do not divide 1,000


@pytest.fixture(params=["epsilon", "v_prediction"])
def pipe(request: pytest.FixtureRequest, tiny_pipe: Any) -> Any:
    from diffusers import DDIMScheduler

    made = deepcopy(tiny_pipe)
    betas = "scaled_linear" if request.param == "epsilon" else "squaredcos_cap_v2"
    made.scheduler = DDIMScheduler(
        beta_schedule=betas, prediction_type=request.param, clip_sample=False, timestep_spacing="trailing"
    )
    return made


@pytest.fixture
def start(tiny_pipe: Any) -> Tensor:
    side = tiny_pipe.unet.config.sample_size
    return torch.randn(2, tiny_pipe.unet.config.in_channels, side, side, generator=torch.Generator().manual_seed(1))


def test_without_noise_it_is_the_pipelines_own_call(pipe: Any, start: Tensor) -> None:
    sampler = Sampler.of(pipe, PROMPTS, STEPS, GUIDANCE)
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"}
    expected = pipe(PROMPTS, latents=start, **options).images
    assert torch.allclose(sampler.sample(start), expected, rtol=1e-3, atol=1e-3)
    half = sampler.sample(start, last=3)
    assert torch.equal(sampler.sample(half, 3), sampler.sample(start))


@pytest.mark.parametrize("eta", [0.3, 0.9])  # at 1, diffusers may take the root of -1e-8, as the processor rounds
def test_noise_is_that_of_diffusers_ddim(pipe: Any, start: Tensor, eta: float) -> None:
    sampler = Sampler.of(pipe, PROMPTS, STEPS, GUIDANCE)
    noises = torch.randn(STEPS, *start.shape, generator=torch.Generator().manual_seed(2))
    made = sampler.sample(start, eta=eta, noise=lambda step: noises[step])
    scheduler, latents = deepcopy(pipe.scheduler), start
    scheduler.set_timesteps(STEPS)
    for step, timestep in enumerate(scheduler.timesteps):
        predicted = sampler.predict(step, latents)
        latents = scheduler.step(predicted, timestep, latents, eta=eta, variance_noise=noises[step]).prev_sample
    assert torch.allclose(made, latents, rtol=1e-3, atol=1e-3)


def test_more_noise_than_a_step_may_have_replaces_the_direction(pipe: Any, start: Tensor) -> None:
    sampler = Sampler.of(pipe, PROMPTS, STEPS, GUIDANCE)
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(3))
    eta, spread, step = 1.85, 1.04, 4
    made = sampler.sample(start, step, step + 1, eta=eta, spread=spread, noise=lambda at: noise)
    before, now = (sampler.schedule.shares[at] for at in (step, step + 1))
    clean, own = sampler.schedule.parts(step, start, sampler.predict(step, start))
    sigma = eta * ((1 - now) / (1 - before)).sqrt() * (1 - before / now).sqrt()
    direction = max(float(1 - now - sigma**2), 0.0) ** 0.5
    assert torch.allclose(made, now.sqrt() * clean + direction * own + sigma * spread**0.5 * noise, atol=1e-5)


def test_clean_latents_and_noise_recompose_the_latents(pipe: Any, start: Tensor) -> None:
    schedule = Schedule.of(pipe, STEPS)
    predicted = torch.randn(start.shape, generator=torch.Generator().manual_seed(4))
    for step in range(1, STEPS):
        clean, noise = schedule.parts(step, start, predicted)
        assert torch.allclose(schedule.noised(step, clean, noise), start, atol=1e-4)
        share = schedule.shares[step]
        expected = share.sqrt() * noise - (1 - share).sqrt() * clean if schedule.velocity else noise
        assert torch.allclose(expected, predicted, atol=1e-4)


def test_inversion_is_undone_by_sampling_where_the_prediction_does_not_change(pipe: Any, start: Tensor) -> None:
    sampler = Sampler.of(pipe, PROMPTS, 40, 1.0)
    noise = 0.1 * torch.randn(start.shape, generator=torch.Generator().manual_seed(5))

    def steady(step: int, latents: Tensor) -> Tensor:
        """A denoiser that always sees the same noise, whatever it predicts."""
        share = sampler.schedule.shares[step]
        if not sampler.schedule.velocity:
            return noise
        return (noise - (1 - share).sqrt() * latents) / share.sqrt()

    object.__setattr__(sampler, "predict", steady)
    found = sampler.invert(start)
    share = sampler.schedule.shares[0]
    assert torch.allclose(found, share.sqrt() * start + (1 - share).sqrt() * noise, atol=1e-3)
    # The first step of the cosine schedule has next to no signal: go on from the second.
    second = sampler.schedule.noised(1, start, noise)
    assert torch.allclose(sampler.sample(second, 1), start, atol=2e-2)


def test_guidance_adds_the_weighted_gradient_of_a_score(pipe: Any, start: Tensor) -> None:
    sampler = Sampler.of(pipe, PROMPTS, STEPS, GUIDANCE)
    towards = torch.randn(start.shape, generator=torch.Generator().manual_seed(6))
    step, weight = 2, 5.0

    def score(latents: Tensor, share: Tensor) -> Tensor:
        return -share * (latents - towards).square().sum((1, 2, 3)) / 2

    made = sampler.sample(start, step, step + 1, towards=(score, weight))
    share, now = (sampler.schedule.shares[at] for at in (step, step + 1))
    own = sampler.schedule.parts(step, start, sampler.predict(step, start))[1]
    own = own - weight * (1 - share).sqrt() * share * (towards - start)
    clean = (start - (1 - share).sqrt() * own) / share.sqrt()
    assert torch.allclose(made, now.sqrt() * clean + (1 - now).sqrt() * own, rtol=1e-3, atol=1e-3)


def test_other_samplers_are_refused(tiny_pipe: Any) -> None:
    from diffusers import EulerDiscreteScheduler

    made = deepcopy(tiny_pipe)
    made.scheduler = EulerDiscreteScheduler()
    with pytest.raises(ExciseError, match="probes sample by DDIM; EulerDiscreteScheduler"):
        Schedule.of(made, STEPS)
