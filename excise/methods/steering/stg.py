"""STG: look at the picture while it is generated, and lead its text states away from the concept that a detector sees
(Na et al., Training-Free Safe Text Embedding Guidance for Text-to-Image Diffusion Models, NeurIPS 2025).

    where the detector sees the concept in the decoded x̂₀(c):  c ← c - ρ |c| ∇_c l / |∇_c l|,  and take the step again
l is the detector's logit, differentiated through the VAE and the U-Net. `excise.erasers.edits.pictures.PictureEdit` has
the formulas. A picture in which it sees nothing keeps every bit. Steps 5 to 45 of 50, guidance 7.5, and that c moves on
from step to step, are from the authors' code (aailab-kaist/STG, Apache-2.0).

Differences: the authors have NudeNet for a detector. Here it is a small convolutional network, trained on what the
model itself draws of the concept's prompt pairs: x̂₀ of every step in that range, with the pair's side as its label. It
is none of the judges that measure erasers. Its numbers, and the threshold of 0.5 where the authors have a confidence of
0.01, are ours. ρ is a share of the states' norm, where the authors' 0.5 is a length; 0.05 is from a first
look at one tuning concept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.concepts import Concept
from excise.concepts.concept import mentioned
from excise.erasers import Eraser
from excise.erasers.apply.pictures import decoded, noise_of, times_of
from excise.erasers.edits.pictures import SIZE, PictureEdit, detected
from excise.erasers.hooks.context import unedited
from excise.erasers.hooks.unet_call import UNetCall, predicted
from excise.errors import ExciseError
from excise.methods.base import Fitted
from excise.methods.build import build_eraser
from excise.methods.configs.steering import STGConfig
from excise.pipeline import Pipeline, as_diffusers
from excise.sites.denoiser import denoiser_of, whole

CHANNELS = (3, 16, 32, 64)
"""Of a picture, and of the detector's convolutions."""
EVERY = 4
"""One pair in so many is not trained on, but measured on."""
FIRST_SEED = 150_000
"""Seed of the first picture. Benchmarks start at 0, so the seeds do not overlap."""
BRIGHTNESS = 0.1
"""Standard deviation of the noise on pictures in training."""


def fit(pipe: Pipeline, concept: Concept, config: STGConfig | None = None) -> Eraser:
    """Train the detector and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has no U-Net that reads one text encoder, no VAE or no known noise levels, or the
    concept fewer than two pairs whose other side does not mention it.
    """
    config = config or STGConfig()
    site = whole(pipe, "stg")
    noise_of(pipe)
    own = [pair for pair in concept.pairs if not mentioned(pair.deconcept, concept.mentions)]
    count = min(config.pairs, len(own))
    if count < 2:
        raise ExciseError(f"concept {concept.name!r} has {count} prompt pairs, and stg needs two; make more of them")
    # Evenly spread, since pairs are sorted by their wording.
    pairs = [own[n * len(own) // count] for n in range(count)]
    start, stop = (
        share * as_diffusers(pipe).scheduler.config.num_train_timesteps / 1000 for share in (config.start, config.stop)
    )
    shown, others = (
        frames(pipe, [getattr(pair, side) for pair in pairs], config, start, stop) for side in ("concept", "deconcept")
    )
    if not shown.shape[1]:
        raise ExciseError(f"none of {config.steps} steps lies between timesteps {stop:g} and {start:g}; raise steps")
    held = torch.arange(count) % EVERY == EVERY - 1 if count >= EVERY else torch.arange(count) == count - 1
    (first, second, third), weights, biases = trained(shown[~held].flatten(0, 1), others[~held].flatten(0, 1), config)
    how = {"threshold": config.threshold, "rho": config.rho, "guidance": config.guidance, "start": start, "stop": stop}
    edit = PictureEdit(site, first, second, third, weights, biases, **how)
    tested = (side[held].flatten(0, 1) for side in (shown, others))
    seen, seen_without = (len(edit.shows(pictures)) / len(pictures) for pictures in tested)
    measured = {
        "pictures": 2 * count,
        "frames": int(shown.shape[1]),
        "seen": round(seen, 4),
        "seen_without": round(seen_without, 4),
    }
    return build_eraser(pipe, [edit], concept, "stg", asdict(config), measured)


@torch.no_grad()
def frames(pipe: Pipeline, prompts: Sequence[str], config: STGConfig, start: float, stop: float) -> Tensor:
    """Return what the model draws of each prompt at the steps from `start` to `stop`, `[prompts, steps, 3, 64, 64]`.

    These are its decoded x̂₀ with guidance, in -1..1, on the CPU. Seeds begin at `FIRST_SEED + config.seed`.
    """
    found: list[Tensor] = []
    unet = denoiser_of(pipe)[1]
    seeds = [FIRST_SEED + config.seed + n for n in range(len(prompts))]
    for first in range(0, len(prompts), config.batch):
        some, seen = list(prompts[first : first + config.batch]), list[Tensor]()

        def look(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any, seen: list[Tensor] = seen) -> None:
            call = UNetCall.of(module, args, kwargs)
            if stop < call.timestep <= start:
                without, own = predicted(output).chunk(2)
                guided = without + config.guidance * (own - without)
                half = len(guided)
                drawn = decoded(pipe, call.given["sample"][:half], guided, times_of(call)[:half])
                seen.append(F.interpolate(drawn.float(), (SIZE, SIZE), mode="area").cpu())

        handle = unet.register_forward_hook(look, with_kwargs=True)
        try:
            with unedited(), torch.compiler.set_stance("force_eager"):
                as_diffusers(pipe)(
                    some,
                    num_inference_steps=config.steps,
                    guidance_scale=config.guidance,
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds[first : first + len(some)]],
                    output_type="latent",
                )
        finally:
            handle.remove()
        found.append(torch.stack(seen, 1) if seen else torch.empty(len(some), 0, 3, SIZE, SIZE))
    return torch.cat(found)


def trained(positive: Tensor, negative: Tensor, config: STGConfig) -> tuple[list[Tensor], Tensor, Tensor]:
    """Train a detector on pictures `[n, 3, 64, 64]` of either kind with Adam. Return kernels, weights and biases.

    The loss is the binary cross-entropy, in batches with as many pictures of either kind, half of them mirrored, with
    noise added.
    """
    generator = torch.Generator().manual_seed(config.seed)
    shapes = [(after, before, 3, 3) for before, after in pairwise(CHANNELS)]
    parts = [torch.randn(shape, generator=generator) * (2 / (9 * shape[1])) ** 0.5 for shape in shapes]
    parts += [torch.zeros(2 * CHANNELS[-1]), torch.zeros(sum(CHANNELS[1:]) + 1)]
    for part in parts:
        part.requires_grad_()
    adam = torch.optim.Adam(parts, lr=config.lr)
    labels = torch.cat([torch.ones(config.batch), torch.zeros(config.batch)])
    with torch.enable_grad():
        for _ in range(config.iterations):
            chosen = [
                side[torch.randint(len(side), (config.batch,), generator=generator)] for side in (positive, negative)
            ]
            pictures = torch.cat(chosen)
            mirrored = torch.rand(len(pictures), 1, 1, 1, generator=generator) < 0.5
            pictures = torch.where(mirrored, pictures.flip(3), pictures)
            pictures = pictures + BRIGHTNESS * torch.randn(pictures.shape, generator=generator)
            loss = F.binary_cross_entropy_with_logits(detected(pictures, parts[:3], *parts[3:]), labels)
            for part, slope in zip(parts, torch.autograd.grad(loss, parts), strict=True):
                part.grad = slope
            adam.step()
    *kernels, weights, biases = (part.detach() for part in parts)
    return kernels, weights, biases


METHOD = Fitted("stg", STGConfig, fit)
