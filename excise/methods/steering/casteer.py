"""CASteer: reverse the direction that a concept adds to every cross-attention's output, wherever it appears (Gaintseva
et al., CASteer: Cross-Attention Steering for Controllable Concept Erasure, ICLR 2026, section 4).

    s = mean over pairs and patches of CA(prompt with the concept) - CA(the same without it), divided by its length
    h ← h - β max(⟨s, h⟩, 0) s
Every layer and step has its own s; both prompts of a pair use the same seed. β = 2 mirrors h at the plane normal to s.
Written from these formulas; the authors' code has no licence and is not used. Assumptions: s averages patches of the
conditional branch only, and both branches of guidance are steered. β = 2 and 50 steps are the authors'; 10 to 50 pairs
suffice there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.erasers.edits.vectors import DirectionEdit
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError
from excise.methods.base import Fitted
from excise.methods.build import build_eraser
from excise.methods.configs.steering import CASteerConfig
from excise.pipeline import Pipeline, as_diffusers
from excise.sites import Site
from excise.sites.denoiser import attention_at, cross_attentions, denoiser_of, timestep_of


def fit(pipe: Pipeline, concept: Concept, config: CASteerConfig | None = None) -> Eraser:
    """Fit and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has no cross-attention or the concept no pairs.
    """
    config = config or CASteerConfig()
    found, timesteps = directions(pipe, concept, config, "casteer")
    edits = [DirectionEdit(site, s, timesteps, config.beta) for site, s in found.items()]
    return build_eraser(pipe, edits, concept, "casteer", asdict(config), {"pairs": used_pairs(concept, config)})


def used_pairs(concept: Concept, config: CASteerConfig) -> int:
    """Return the number of pairs that the directions are measured on."""
    return len(concept.pairs[: config.pairs])


def directions(
    pipe: Pipeline, concept: Concept, config: CASteerConfig, method: str
) -> tuple[dict[Site, Tensor], Tensor]:
    """Return s of every cross-attention and step `[S, d]`, of length 1, and the timesteps `[S]` in falling order.

    Raises ExciseError, which names the method, if the pipeline has no cross-attention or the concept no pairs.
    """
    sites, pairs = cross_attentions(pipe, method), concept.pairs[: config.pairs]
    if not pairs:
        raise ExciseError(f"concept {concept.name!r} has no prompt pairs; make some with `excise pairs make`")
    positive, timesteps = mean_outputs(pipe, sites, [pair.concept for pair in pairs], config)
    negative, _ = mean_outputs(pipe, sites, [pair.deconcept for pair in pairs], config)
    return {site: F.normalize(positive[site] - negative[site], dim=1) for site in sites}, timesteps


def mean_outputs(
    pipe: Pipeline, sites: Sequence[Site], prompts: Sequence[str], config: CASteerConfig
) -> tuple[dict[Site, Tensor], Tensor]:
    """Return each Site's mean output over pictures and patches at every step, `[S, d]`, and the timesteps `[S]`.

    Only the conditional branch counts. Timesteps are in falling order.
    """

    def mean(_: Site, output: Tensor, pictures: int, __: float) -> Tensor:
        return output[-pictures:].float().mean(1).sum(0)

    sums: dict[Site, Tensor] = {}
    called = torch.empty(0)
    for batch, called in outputs(pipe, sites, prompts, config, mean):  # noqa: B007
        sums = {site: torch.stack(calls) + sums.get(site, 0) for site, calls in batch.items()}
    # PNDM calls the U-Net twice at one of its timesteps: both count there.
    falling = sorted(set(called.tolist()), reverse=True)
    return {
        site: torch.stack([total[called == timestep].mean(0) for timestep in falling]) / len(prompts)
        for site, total in sums.items()
    }, torch.tensor(falling)


Reader = Callable[[Site, Tensor, int, float], Tensor]
"""Reads a Site's output `[B, N, d]` for a number of pictures, whose conditional rows are the last ones, at a
timestep."""


def outputs(
    pipe: Pipeline, sites: Sequence[Site], prompts: Sequence[str], config: CASteerConfig, read: Reader
) -> Iterator[tuple[dict[Site, list[Tensor]], Tensor]]:
    """Generate a picture of every prompt, unedited, and read its cross-attentions at every call of the U-Net.

    Yields, for each batch of prompts, what `read` made of each Site's outputs, call by call, and the timesteps
    `[calls]`.
    """
    for start in range(0, len(prompts), config.batch):
        batch = list(prompts[start : start + config.batch])
        seeds = range(config.seed + start, config.seed + start + len(batch))
        yield _drawn(pipe, sites, batch, seeds, config, read)


@torch.no_grad()
def _drawn(
    pipe: Pipeline,
    sites: Sequence[Site],
    prompts: list[str],
    seeds: Sequence[int],
    config: CASteerConfig,
    read: Reader,
) -> tuple[dict[Site, list[Tensor]], Tensor]:
    seen: dict[Site, list[Tensor]] = {site: [] for site in sites}
    timesteps: list[float] = []

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        timesteps.append(float(timestep_of(module, args, kwargs)[1].flatten()[0]))

    def keeper(site: Site) -> Any:
        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            seen[site].append(read(site, output, len(prompts), timesteps[-1]).cpu())

        return keep

    with ExitStack() as stack:
        unet = denoiser_of(pipe)[1]
        stack.callback(unet.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for site in sites:
            stack.callback(attention_at(pipe, site).register_forward_hook(keeper(site)).remove)
        stack.enter_context(unedited())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        as_diffusers(pipe)(
            prompts,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="latent",
        )
    return seen, torch.tensor(timesteps)


METHOD = Fitted("casteer", CASteerConfig, fit)
