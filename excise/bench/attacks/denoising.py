"""Shared parts of the white-box attacks: noised pictures at random timesteps, and the denoiser's predictions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from excise.erasers.loaded import steer_guidance
from excise.errors import ExciseError
from excise.pipeline import Pipeline, as_diffusers


def noised(pipe: Pipeline, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Add noise to pictures at random timesteps, as in training.

    Args:
        clean: Scaled latents `[n, C, h, w]`.

    Returns:
        Noised latents `[n, C, h, w]` in the dtype of `clean`, their timesteps `[n]`, and the noise or velocity that the
        denoiser should predict, float32.

    Raises ExciseError for a scheduler with another prediction type.
    """
    scheduler = as_diffusers(pipe).scheduler
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    times = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), generator=generator).to(clean.device)
    # Not by add_noise: a multistep scheduler's knows only the timesteps of the last sampling.
    # In float32: half precision rounds the first timesteps' noise away.
    share = scheduler.alphas_cumprod.float().to(clean.device)[times].reshape(-1, 1, 1, 1)
    signal, spread = share.sqrt(), (1 - share).sqrt()
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise ExciseError(f"the scheduler predicts {kind!r}; the attack supports epsilon and v_prediction")
    wanted = noise if kind == "epsilon" else signal * noise - spread * clean
    return (signal * clean + spread * noise).to(clean.dtype), times, wanted


def denoised(pipe: Pipeline, spoilt: Tensor, times: Tensor, prompts: str | Sequence[str]) -> Tensor:
    """Return the denoiser's prediction `[n, C, h, w]` for noised pictures, given one prompt for all or one for each.

    For an eraser that steers guidance, the batch also holds the same pictures with the empty prompt, which it needs.
    (It takes each call for the next step of one picture, so its momentum carries over from call to call.)
    """
    guided = steer_guidance(pipe)
    given = prompts if isinstance(prompts, str) else list(prompts)
    states, without = as_diffusers(pipe).encode_prompt(given, spoilt.device, 1, guided)[:2]
    states = states.expand(len(spoilt), -1, -1)
    if not guided:
        made: Tensor = as_diffusers(pipe).unet(spoilt, times, states).sample
        return made
    both = torch.cat([without.expand(len(spoilt), -1, -1), states])
    made = as_diffusers(pipe).unet(torch.cat([spoilt, spoilt]), torch.cat([times, times]), both).sample
    return made[len(spoilt) :]
