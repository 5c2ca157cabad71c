"""Capture of features of a denoiser's blocks during generation: patches by step, of the conditional branch."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from excise.errors import ExciseError
from excise.pipeline import Pipeline, as_diffusers
from excise.sites.denoiser import as_patches, denoiser_of, module_at, timestep_of
from excise.sites.encoding import Enough
from excise.sites.site import Site


@dataclass(frozen=True)
class Patches:
    """A block's output for a batch of prompts at one denoising step."""

    states: Tensor
    """`[B, N, C]`: N patches of every image, on the denoiser's device and in its dtype."""
    timestep: float
    """The denoiser's timestep."""
    step: int
    """The denoising step, from 0."""
    numbers: tuple[int, ...]
    """Indices of the prompts in the whole stream, from 0."""


def capture_blocks(
    pipe: Pipeline,
    site: Site,
    prompts: Iterable[str],
    *,
    seeds: Iterable[int],
    steps: int = 20,
    wanted: Sequence[int] | None = None,
    batch_size: int = 8,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Patches]:
    """Generate from every prompt and yield the block's patches, batch by batch and step by step.

    Only one batch's patches are in memory at a time. The same arguments give the same bits.

    Args:
        pipe: The pipeline.
        site: A block of its denoiser.
        prompts: The prompts.
        seeds: One seed for each prompt.
        steps: Denoising steps.
        wanted: The steps to yield, by default all. Generation stops after the last one.
        batch_size: Prompts per batch.
        options: Further arguments of the pipeline (`guidance_scale`, `height`, ...).

    Raises:
        ExciseError: if the block is unknown, `wanted` exceeds `steps`, there are fewer seeds than prompts, or the
            pipeline is not supported: it starts from an image, its scheduler has more timesteps than steps, or it runs
            the branches of guidance separately.
    """
    chosen = sorted(set(range(steps) if wanted is None else wanted))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < steps:
        raise ExciseError(f"steps {chosen} are not among the {steps} of the generation; choose from 0 to {steps - 1}")
    _, denoiser = denoiser_of(pipe, site.component)
    block = module_at(pipe, site)
    if "image" in inspect.signature(as_diffusers(pipe).__call__).parameters:
        raise ExciseError(
            f"{type(pipe).__name__} starts from an image; capture with the text-to-image pipeline of its components"
        )
    stream, numbers = iter(prompts), iter(seeds)
    first = 0
    while batch := list(islice(stream, batch_size)):
        given = list(islice(numbers, len(batch)))
        if len(given) < len(batch):
            raise ExciseError("there are fewer seeds than prompts; give each prompt a seed")
        seen = _generate(pipe, denoiser, block, site, batch, given, steps, chosen, dict(options or {}))
        for step, (timestep, states) in seen.items():
            yield Patches(states, timestep, step, tuple(range(first, first + len(batch))))
        first += len(batch)


@torch.no_grad()
def _generate(
    pipe: Pipeline,
    denoiser: nn.Module,
    block: nn.Module,
    site: Site,
    prompts: list[str],
    seeds: list[int],
    steps: int,
    chosen: list[int],
    options: dict[str, Any],
) -> dict[int, tuple[float, Tensor]]:
    """Return timestep and conditional patches `[B, N, C]` of one batch, by step."""
    seen: dict[int, tuple[float, Tensor]] = {}
    past: list[float] = []
    scheduler = as_diffusers(pipe).scheduler

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        now = float(timestep_of(module, args, kwargs)[1].flatten()[0])
        if not past and (known := len(set(map(float, getattr(scheduler, "timesteps", ()))))) > steps:
            raise ExciseError(
                f"{type(scheduler).__name__} calls the denoiser at {known} timesteps in {steps} steps; use a "
                "scheduler with one timestep per step"
            )
        if not past or now != past[-1]:
            past.append(now)
        elif [float(t) for t in scheduler.timesteps].count(now) < 2:  # PNDM repeats a timestep
            raise ExciseError(
                f"{type(pipe).__name__} calls its denoiser twice per step, once for each branch of guidance; generate "
                "without guidance to capture the conditional branch"
            )

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        step = len(past) - 1
        if step in chosen and step not in seen:
            patches = as_patches(output)
            if patches.shape[0] not in (len(prompts), 2 * len(prompts)) or patches.shape[-1] != site.width:
                raise ExciseError(
                    f"{site.key} gave {tuple(patches.shape)}, not one image per prompt of width {site.width}; choose "
                    "another block"
                )
            seen[step] = past[-1], patches[-len(prompts) :].clone()

    def end(module: nn.Module, args: Any, output: Any) -> None:
        if len(past) > chosen[-1]:
            raise Enough

    with ExitStack() as stack:
        stack.callback(denoiser.register_forward_pre_hook(begin, with_kwargs=True).remove)
        stack.callback(block.register_forward_hook(keep).remove)
        stack.callback(denoiser.register_forward_hook(end).remove)
        # Compiled code ignores hooks that were added after compilation.
        with suppress(Enough), torch.compiler.set_stance("force_eager"):
            as_diffusers(pipe)(
                prompts,
                num_inference_steps=steps,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="latent",
                **options,
            )
    if missing := [step for step in chosen if step not in seen]:
        raise ExciseError(f"{site.key} did not run in step {missing[0]} of {steps}; choose another block")
    return seen
