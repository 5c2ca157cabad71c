"""A pipeline's U-Net called by hand: what it is told beside the picture, and pictures drawn part of the way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from excise.erasers.guard import unedited
from excise.errors import ExciseError
from excise.sites.blocks import denoiser_of
from excise.sites.encoding import Enough

Predict = Callable[[Tensor, Any, Tensor, Mapping[str, Any]], Tensor]
"""Of a noised picture, its timestep, text states and what else there is: what a denoiser makes of it."""


@dataclass(frozen=True, eq=False)
class Told:
    """What a pipeline tells its U-Net of one prompt."""

    states: Tensor
    """`[1, T, d]`."""
    more: Mapping[str, Any]
    """Its other arguments by name, such as SDXL's `added_cond_kwargs`."""
    shape: tuple[int, ...]
    """Of the latents of one picture, `[1, C, h, w]`."""

    def of(self, count: int) -> tuple[Tensor, dict[str, Any]]:
        """The states and other arguments of so many pictures."""
        return self.states.expand(count, -1, -1), {name: _expanded(value, count) for name, value in self.more.items()}


def told(pipe: Any, prompt: str, method: str) -> Told:
    """What the pipeline tells its U-Net of a prompt, unedited. Raises ExciseError where it has no U-Net."""
    if not isinstance(getattr(pipe, "unet", None), nn.Module):
        raise ExciseError(f"{method} trains a U-Net, and {type(pipe).__name__} has none; choose another method")
    unet, given = denoiser_of(pipe, "unet")[1], dict[str, Any]()

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.update(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False))
        given.update(kwargs)
        raise Enough

    handle = unet.register_forward_pre_hook(note, with_kwargs=True)
    try:
        # Without guidance, the batch is the prompt alone.
        with suppress(Enough), unedited(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            generator = torch.Generator().manual_seed(0)
            pipe(prompt, num_inference_steps=1, guidance_scale=1.0, generator=generator, output_type="latent")
    finally:
        handle.remove()
    kept = ("sample", "timestep", "encoder_hidden_states", "return_dict")
    more = {name: value for name, value in given.items() if name not in kept and value is not None}
    return Told(given["encoder_hidden_states"].detach(), more, tuple(given["sample"].shape))


def _expanded(value: Any, count: int) -> Any:
    if isinstance(value, Tensor):
        return value.expand(count, *value.shape[1:]) if value.ndim and len(value) == 1 else value
    return {name: _expanded(part, count) for name, part in value.items()} if isinstance(value, dict) else value


def plain(pipe: Any) -> Predict:
    """The pipeline's own U-Net, unedited and without gradients."""
    unet = denoiser_of(pipe, "unet")[1]

    @torch.no_grad()
    def predict(sample: Tensor, timestep: Any, states: Tensor, more: Mapping[str, Any]) -> Tensor:
        with unedited():
            made: Tensor = unet(sample, timestep, encoder_hidden_states=states, return_dict=False, **more)[0]
        return made

    return predict


@torch.no_grad()
def partly_drawn(
    pipe: Any,
    predict: Predict,
    prompt: Told,
    empty: Told,
    generator: torch.Generator,
    *,
    count: int,
    steps: int,
    done: int,
    guidance: float,
) -> tuple[Tensor, Tensor]:
    """`count` pictures of `prompt` after `done` of `steps` steps, as the U-Net reads them, and the next timestep.

    With classifier-free guidance; the first noise is the generator's.
    """
    scheduler = copy.deepcopy(pipe.scheduler)
    device, dtype = prompt.states.device, prompt.states.dtype
    scheduler.set_timesteps(steps, device=device)
    noise = torch.randn((count, *prompt.shape[1:]), generator=generator).to(device, dtype)
    latents = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps[:done]:
        given = scheduler.scale_model_input(latents, timestep)
        without, with_it = (predict(given, timestep, *side.of(count)) for side in (empty, prompt))
        made = without + guidance * (with_it - without)
        latents = scheduler.step(made, timestep, latents, return_dict=False)[0]
    timestep = scheduler.timesteps[done]
    return scheduler.scale_model_input(latents, timestep), timestep
