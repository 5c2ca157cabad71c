"""What white-box attacks share: pictures noised to random timesteps, and what the denoiser should make of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from excise.erasers.loaders import steer_guidance
from excise.errors import ExciseError
from excise.pipeline import Pipeline, as_diffusers


def noised(pipe: Pipeline, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noised pictures `[n, C, h, w]`, their timesteps `[n]`, and the noise (or velocity) the denoiser was trained on.

    `clean` are scaled latents `[n, C, h, w]`. Raises ExciseError for a scheduler that predicts something else.
    """
    scheduler = as_diffusers(pipe).scheduler
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    times = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), generator=generator).to(clean.device)
    # By hand, as trained: a multistep scheduler's own add_noise knows the steps of the last sampling only.
    share = scheduler.alphas_cumprod.to(clean)[times].reshape(-1, 1, 1, 1)
    signal, spread = share.sqrt(), (1 - share).sqrt()
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise ExciseError(f"the scheduler predicts {kind!r}; the attack knows epsilon and v_prediction")
    wanted = noise if kind == "epsilon" else signal * noise - spread * clean
    return signal * clean + spread * noise, times, wanted


def denoised(pipe: Pipeline, spoilt: Tensor, times: Tensor, prompts: str | Sequence[str]) -> Tensor:
    """What the denoiser makes of noised pictures `[n, C, h, w]`, told of one prompt for all, or of one each.

    An eraser that steers guidance is given what it needs: the same pictures without a prompt, in the same batch. (It
    sees every call as another step of one drawing, at which its momentum is that of the calls before.)
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
