"""CASteer: reverse the direction that a concept adds to every cross-attention's output, wherever it appears (Gaintseva
et al., CASteer: Steering Diffusion Models for Controllable Generation, ICLR 2026, section 4).

    s = mean over pairs and patches of CA(prompt with the concept) - CA(the same without it), divided by its length
    h ← h - β max(⟨s, h⟩, 0) s
Every layer and step has its own s; both prompts of a pair use the same seed. β = 2 mirrors h at the plane normal to s.
Written from these formulas; the authors' code has no licence and is not used. Assumptions: s averages patches of the
conditional branch only, and both branches of guidance are steered. β = 2 and 50 steps are the authors'; 10 to 50 pairs
suffice there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    sites, pairs = cross_attentions(pipe, "casteer"), concept.pairs[: config.pairs]
    if not pairs:
        raise ExciseError(f"concept {concept.name!r} has no prompt pairs; make some with `excise pairs make`")
    positive, timesteps = mean_outputs(pipe, sites, [pair.concept for pair in pairs], config)
    negative, _ = mean_outputs(pipe, sites, [pair.deconcept for pair in pairs], config)
    edits = [
        DirectionEdit(site, F.normalize(positive[site] - negative[site], dim=1), timesteps, config.beta)
        for site in sites
    ]
    return build_eraser(pipe, edits, concept, "casteer", asdict(config), {"pairs": len(pairs)})


@torch.no_grad()
def mean_outputs(
    pipe: Pipeline, sites: Sequence[Site], prompts: Sequence[str], config: CASteerConfig
) -> tuple[dict[Site, Tensor], Tensor]:
    """Return each Site's mean output over pictures and patches at every step, `[S, d]`, and the timesteps `[S]`.

    Only the conditional branch counts. Timesteps are in falling order.
    """
    sums: dict[Site, list[Tensor]] = {site: [] for site in sites}
    timesteps: list[float] = []
    for start in range(0, len(prompts), config.batch):
        batch = list(prompts[start : start + config.batch])
        seeds = range(config.seed + start, config.seed + start + len(batch))
        timesteps.clear()
        for site, means in _drawn(pipe, sites, batch, seeds, config, timesteps):
            kept = sums[site]
            for step, mean in enumerate(means):
                if step == len(kept):
                    kept.append(torch.zeros_like(mean))
                kept[step] += mean
    # PNDM calls the U-Net twice at one of its timesteps: both count there.
    called = torch.tensor(timesteps)
    falling = sorted(set(timesteps), reverse=True)
    by_site = {site: torch.stack(kept) / len(prompts) for site, kept in sums.items()}
    return {
        site: torch.stack([mean[called == timestep].mean(0) for timestep in falling]) for site, mean in by_site.items()
    }, torch.tensor(falling)


def _drawn(
    pipe: Pipeline,
    sites: Sequence[Site],
    prompts: list[str],
    seeds: Sequence[int],
    config: CASteerConfig,
    timesteps: list[float],
) -> Iterator[tuple[Site, list[Tensor]]]:
    """Yield, by Site, the sum over these pictures of the mean over patches `[d]`, step by step; fill `timesteps`."""
    seen: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        timesteps.append(float(timestep_of(module, args, kwargs)[1].flatten()[0]))

    def keeper(site: Site) -> Any:
        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            seen[site].append(output[-len(prompts) :].float().mean(1).sum(0).cpu())

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
    yield from seen.items()


METHOD = Fitted("casteer", CASteerConfig, fit)
