"""Fine-tuning of a denoiser, its eraser attached, on scenes without the concept: does the concept come back?

Concepts return under fine-tuning that has nothing to do with them ("When Are Concepts Erased From Diffusion Models?",
Lu et al. 2025; "Unstable Unlearning", Suriyakumar et al. 2024). An eraser that edits states or adds to the weights is
attached while the weights below it move. The weights are put back afterwards. An attached eraser refuses a model whose
weights have changed, so in a service this takes a stranger who can fine-tune the model and attach the eraser again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from excise.bench.attacks.denoising import denoised, noised
from excise.bench.latents import encoded
from excise.erasers.loaded import loaded_on
from excise.pipeline import Pipeline, as_diffusers
from excise.reference.scenes import Scene, render, sample_caption, sample_scene

RATE, BATCH = 1e-4, 8
"""Learning rate of AdamW, and scenes a step."""


@contextmanager
def fine_tuned(pipe: Pipeline, concept: str, steps: int) -> Iterator[None]:
    """Fine-tune the denoiser on scenes without the concept, and put its weights back at the exit.

    The same arguments give the same weights. Steps are counted in float32 whatever the precision of the model is, so
    that small ones are not lost.
    """
    unet, attached = as_diffusers(pipe).unet, list(loaded_on(pipe).values())
    rules = [one.on_bypass for one in attached]
    weights = [weight for weight in unet.parameters() if weight.is_floating_point()]
    before = [(weight.detach().clone(), weight.requires_grad) for weight in weights]
    try:
        for one in attached:
            one.on_bypass = "allow"  # an eraser refuses a model whose weights moved, which is what is probed
        with torch.inference_mode(False), torch.enable_grad():
            _tune(pipe, concept, steps, weights)
        yield
    finally:
        for one, rule in zip(attached, rules, strict=True):
            one.on_bypass = rule
        with torch.no_grad():
            for weight, (old, trainable) in zip(weights, before, strict=True):
                weight.copy_(old)
                weight.requires_grad_(trainable)


def _tune(pipe: Pipeline, concept: str, steps: int, weights: list[Tensor]) -> None:
    rng, draw = random.Random(f"resurgence {concept}"), torch.Generator().manual_seed(0)
    moving = [weight.detach().float().clone() for weight in weights]
    adam = torch.optim.AdamW(moving, lr=RATE)
    for weight in weights:
        weight.requires_grad_()
    for _ in range(steps):
        scenes: list[Scene] = []
        while len(scenes) < BATCH:
            scene = sample_scene(rng)
            if concept not in (*scene.objects, scene.style):
                scenes.append(scene)
        captions = [sample_caption(rng, scene) for scene in scenes]
        with torch.no_grad():
            clean = encoded(pipe, np.stack([render(scene) for scene in scenes]))
        spoilt, times, wanted = noised(pipe, clean, draw)
        loss = F.mse_loss(denoised(pipe, spoilt, times, captions).float(), wanted.float())
        for own, slope in zip(moving, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            own.grad = None if slope is None else slope.float()
        adam.step()
        with torch.no_grad():
            for weight, own in zip(weights, moving, strict=True):
                weight.copy_(own)
    for weight in weights:
        weight.requires_grad_(False)
