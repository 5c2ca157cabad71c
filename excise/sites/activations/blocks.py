"""Reading a denoiser's blocks while pictures are generated."""

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
    """What a block gave for a batch of prompts at one denoising step."""

    states: Tensor
    """`[B, N, C]`: N patches of every picture, on the denoiser's device and in its dtype."""
    timestep: float
    """As the denoiser was told."""
    step: int
    """Counted from 0."""
    numbers: tuple[int, ...]
    """Which prompts these are, counted from 0 over the whole stream: what their labels belong to."""


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
    """Draw every prompt from its own seed and give the block's patches, batch by batch and step by step.

    `wanted` are the steps to give, all of them by default; drawing stops after the last. `options` go to the pipeline
    (`guidance_scale`, `height`, ...). One batch's patches are held at a time, however many prompts there are. The same
    arguments give the same bits. Raises ExciseError for an unknown block, steps that are none of those drawn, fewer
    seeds than prompts, or a pipeline that starts from a picture, whose scheduler has more timesteps than steps, or that
    encodes both branches of guidance in separate runs.
    """
    chosen = sorted(set(range(steps) if wanted is None else wanted))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < steps:
        raise ExciseError(f"steps {chosen} are not among the {steps} that are drawn")
    _, denoiser = denoiser_of(pipe, site.component)
    block = module_at(pipe, site)
    if "image" in inspect.signature(as_diffusers(pipe).__call__).parameters:
        raise ExciseError(
            f"{type(pipe).__name__} starts from a picture; capture with the text-to-image pipeline of its components"
        )
    stream, numbers = iter(prompts), iter(seeds)
    first = 0
    while batch := list(islice(stream, batch_size)):
        own = list(islice(numbers, len(batch)))
        if len(own) < len(batch):
            raise ExciseError("there are fewer seeds than prompts; give each prompt its seed")
        seen = _drawn(pipe, denoiser, block, site, batch, own, steps, chosen, dict(options or {}))
        for step, (timestep, states) in seen.items():
            yield Patches(states, timestep, step, tuple(range(first, first + len(batch))))
        first += len(batch)


@torch.no_grad()
def _drawn(
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
    """Timestep and conditional patches `[B, N, C]` by step, of one batch."""
    seen: dict[int, tuple[float, Tensor]] = {}
    past: list[float] = []
    scheduler = as_diffusers(pipe).scheduler

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        now = float(timestep_of(module, args, kwargs)[1].flatten()[0])
        if not past and (known := len(set(map(float, getattr(scheduler, "timesteps", ()))))) > steps:
            raise ExciseError(
                f"{type(scheduler).__name__} asks the denoiser at {known} timesteps in {steps} steps; use a "
                "scheduler that asks at one a step"
            )
        if not past or now != past[-1]:
            past.append(now)
        elif [float(t) for t in scheduler.timesteps].count(now) < 2:  # PNDM has one of its timesteps twice
            raise ExciseError(
                f"{type(pipe).__name__} runs its denoiser twice a step, once for each branch of guidance; draw without "
                "guidance to capture the conditional one"
            )

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        step = len(past) - 1
        if step in chosen and step not in seen:
            patches = as_patches(output)
            if patches.shape[0] not in (len(prompts), 2 * len(prompts)) or patches.shape[-1] != site.width:
                raise ExciseError(
                    f"{site.key} gave {tuple(patches.shape)}, not one picture a prompt, {site.width} wide"
                )
            seen[step] = past[-1], patches[-len(prompts) :].clone()

    def end(module: nn.Module, args: Any, output: Any) -> None:
        if len(past) > chosen[-1]:
            raise Enough

    with ExitStack() as stack:
        stack.callback(denoiser.register_forward_pre_hook(begin, with_kwargs=True).remove)
        stack.callback(block.register_forward_hook(keep).remove)
        stack.callback(denoiser.register_forward_hook(end).remove)
        # Compiled code has no place for hooks that were not there when it was compiled.
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
