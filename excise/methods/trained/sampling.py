"""Calls of a pipeline's U-Net outside of the pipeline: encoded prompts, and sampling to the end or up to a step."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError, WrongModel
from excise.pipeline import Pipeline, as_diffusers
from excise.sites.denoiser import check_reads_text, denoiser_of
from excise.sites.encoding import Enough

Predict = Callable[[Tensor, Any, Tensor, Mapping[str, Any]], Tensor]
"""Denoiser: noised latents, timestep, text states and further arguments to a prediction."""


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Inputs of a U-Net that come from one prompt."""

    states: Tensor
    """`[1, T, d]`."""
    more: Mapping[str, Any]
    """Further arguments by name, such as SDXL's `added_cond_kwargs`."""
    shape: tuple[int, ...]
    """Shape of the latents of one picture, `[1, C, h, w]`."""

    def of(self, count: int) -> tuple[Tensor, dict[str, Any]]:
        """Expand the states and other arguments to `count` pictures."""
        return self.states.expand(count, -1, -1), {name: _expanded(value, count) for name, value in self.more.items()}


def encode_conditioning(pipe: Pipeline, prompt: str, method: str) -> Conditioning:
    """Encode a prompt for the pipeline's U-Net, unedited. Raises ExciseError if no U-Net of it reads text."""
    if not isinstance(getattr(pipe, "unet", None), nn.Module):
        raise WrongModel(f"{method} trains a U-Net, and {type(pipe).__name__} has none; choose another method")
    check_reads_text(pipe, method)
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
            as_diffusers(pipe)(
                prompt, num_inference_steps=1, guidance_scale=1.0, generator=generator, output_type="latent"
            )
    finally:
        handle.remove()
    kept = ("sample", "timestep", "encoder_hidden_states", "return_dict")
    more = {name: value for name, value in given.items() if name not in kept and value is not None}
    return Conditioning(given["encoder_hidden_states"].detach(), more, tuple(given["sample"].shape))


def _expanded(value: Any, count: int) -> Any:
    if isinstance(value, Tensor):
        return value.expand(count, *value.shape[1:]) if value.ndim and len(value) == 1 else value
    return {name: _expanded(part, count) for name, part in value.items()} if isinstance(value, dict) else value


def collate(sides: Sequence[Conditioning]) -> tuple[Tensor, dict[str, Any]]:
    """Join the states and other arguments of several prompts into one batch."""
    more = {name: _stacked([side.more[name] for side in sides]) for name in sides[0].more}
    return torch.cat([side.states for side in sides]), more


def _stacked(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values)) if first.ndim and len(first) == 1 else first
    return {name: _stacked([value[name] for value in values]) for name in first} if isinstance(first, dict) else first


def frozen_unet(pipe: Pipeline) -> Predict:
    """Return the pipeline's own U-Net, unedited and without gradients."""
    unet = denoiser_of(pipe, "unet")[1]

    @torch.no_grad()
    def predict(sample: Tensor, timestep: Any, states: Tensor, more: Mapping[str, Any]) -> Tensor:
        with unedited():
            made: Tensor = unet(sample, timestep, encoder_hidden_states=states, return_dict=False, **more)[0]
        return made

    return predict


def add_noise(pipe: Pipeline, clean: Tensor, times: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise to latents `[n, C, h, w]` up to the timesteps `times` `[n]`, scaled as the U-Net reads them.

    Raises ExciseError if the pipeline's scheduler does not expose its noise levels.
    """
    if not isinstance(shares := getattr(as_diffusers(pipe).scheduler, "alphas_cumprod", None), Tensor):
        raise ExciseError(
            f"{type(as_diffusers(pipe).scheduler).__name__} does not say how much noise a timestep has; use DDIM's"
        )
    # By hand, as in training: a multistep scheduler's own add_noise only knows the steps of the last sampling.
    share = shares.float().to(clean.device)[times.to(clean.device)].reshape(-1, 1, 1, 1)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    return (share.sqrt() * clean + (1 - share).sqrt() * noise).to(clean.dtype)


@torch.no_grad()
def sample_partly(
    pipe: Pipeline,
    predict: Predict,
    prompt: Conditioning,
    empty: Conditioning,
    generator: torch.Generator,
    *,
    count: int,
    steps: int,
    done: int,
    guidance: float,
) -> tuple[Tensor, Tensor]:
    """Denoise `count` pictures of `prompt` for `done` of `steps` steps; return the U-Net's input and the next timestep.

    Uses classifier-free guidance. The initial noise comes from `generator`.
    """
    scheduler, latents = _begun(pipe, prompt, generator, count, steps)
    sides = collate([*[empty] * count, *[prompt] * count])
    for timestep in scheduler.timesteps[:done]:
        latents = _step(scheduler, predict, sides, latents, timestep, guidance)
    timestep = scheduler.timesteps[done]
    return scheduler.scale_model_input(latents, timestep), timestep


@torch.no_grad()
def sample(
    pipe: Pipeline,
    predict: Predict,
    prompts: Sequence[Conditioning],
    empty: Conditioning,
    generator: torch.Generator,
    *,
    steps: int,
    guidance: float,
) -> Tensor:
    """Generate one picture for each prompt, as latents `[n, C, h, w]`.

    Uses classifier-free guidance. All noise comes from `generator`.
    """
    scheduler, latents = _begun(pipe, prompts[0], generator, len(prompts), steps)
    sides = collate([*[empty] * len(prompts), *prompts])
    # Schedulers that add noise at each step would take it from the global generator.
    own = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for timestep in scheduler.timesteps:
        latents = _step(scheduler, predict, sides, latents, timestep, guidance, **own)
    return latents


def _begun(
    pipe: Pipeline, prompt: Conditioning, generator: torch.Generator, count: int, steps: int
) -> tuple[Any, Tensor]:
    """Return a copy of the scheduler, set to `steps` steps, and the initial noise."""
    scheduler = copy.deepcopy(as_diffusers(pipe).scheduler)
    device, dtype = prompt.states.device, prompt.states.dtype
    scheduler.set_timesteps(steps, device=device)
    noise = torch.randn((count, *prompt.shape[1:]), generator=generator).to(device, dtype)
    return scheduler, noise * scheduler.init_noise_sigma


def _step(
    scheduler: Any,
    predict: Predict,
    sides: tuple[Tensor, dict[str, Any]],
    latents: Tensor,
    timestep: Tensor,
    guidance: float,
    **options: Any,
) -> Tensor:
    """Denoise by one step. `sides` holds the conditioning of the empty prompts, then of the pictures' own."""
    given = scheduler.scale_model_input(latents, timestep)
    without, with_it = predict(torch.cat([given, given]), timestep, *sides).chunk(2)
    made: Tensor = without + guidance * (with_it - without)
    after: Tensor = scheduler.step(made, timestep, latents, return_dict=False, **options)[0]
    return after
