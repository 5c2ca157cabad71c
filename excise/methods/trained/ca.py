"""CA: train a U-Net to predict for a concept what it predicts for another one, its anchor (Kumari et al., Ablating
Concepts in Text-to-Image Diffusion Models, ICCV 2023, section 3).

    model:  min over θ of |ε_θ(x_t, c*) - ε*(x_t, c)|²
    noise:  min over θ of |ε_θ(x_t, c*) - ε|²
    both, where λ > 0:  + λ |ε_θ(x_t, c) - ε|²
x_t are noised pictures of the anchor, generated once by the untouched U-Net ε*. c is their prompt, c* the same prompt
with the concept. All timesteps have equal weight. For a U-Net that predicts velocities, these replace ε. The paper
replaces ε*(x_t, c) by ε_θ(x_t, c) with its gradient stopped, an approximation that saves memory.

Training the cross-attention's keys and values, 100 steps at 2e-6 for each of 8 pictures a step, λ = 0 (1 for memorised
pictures and for near concepts), and pictures in 50 steps at guidance 7.5 are from the authors' code
(nupurkmr9/concept-ablation, MIT). That code generates 200 to 1000 pictures, and adds weight decay, clipping and flipped
pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.methods.base import Fitted
from excise.methods.configs.trained import CAConfig
from excise.methods.cross_attention import keys_and_values
from excise.methods.trained.esd import weights
from excise.methods.trained.replay import (
    Pictures,
    add_training_noise,
    diffusion_loss,
    encode_each,
    generate_pictures,
    prompt_pairs,
    setup_generator,
    training_schedule,
)
from excise.methods.trained.sampling import Conditioning, Predict, collate, frozen_unet
from excise.methods.trained.trainer import Student, train_eraser
from excise.pipeline import Pipeline
from excise.sites import Site
from excise.sites.denoiser import denoiser_of


def fit(pipe: Pipeline, concept: Concept, config: CAConfig | None = None) -> Eraser:
    """Train the eraser of `concept` for `pipe` on pictures of its anchor, and self-test it.

    Raises ExciseError if the pipeline has no U-Net or an unknown prediction type, if there is no anchor or it mentions
    the concept, or as `tune` does.
    """
    config = config or CAConfig()
    generator = setup_generator(config)
    pairs = prompt_pairs(concept, config.anchor, config.pictures, generator, "anchor")
    words, instead = (encode_each(pipe, side, "ca") for side in zip(*pairs, strict=True))
    trained, schedule = layers(pipe, config), training_schedule(pipe, "ca")
    anchors = generate_pictures(pipe, instead, config, generator, "ca")
    student, teacher = Student(denoiser_of(pipe, "unet")[1], trained), frozen_unet(pipe)

    def loss(generator: torch.Generator) -> Tensor:
        return objective(schedule, student, teacher, anchors, words, generator, config)

    return train_eraser(pipe, student, loss, concept, "ca", config)


def objective(
    schedule: Any,
    student: Predict,
    teacher: Predict,
    anchors: Pictures,
    words: Sequence[Conditioning],
    generator: torch.Generator,
    config: CAConfig,
) -> Tensor:
    """Return the loss at a random batch of the anchor's pictures; `words` are their prompts with the concept."""
    some = torch.randint(len(words), (config.batch,), generator=generator).tolist()
    made = add_training_noise(schedule, anchors.latents[some], generator)
    with_it, instead = (collate([side[n] for n in some]) for side in (words, anchors.prompts))
    target = teacher(made.latents, made.timesteps, *instead) if config.variant == "model" else made.target
    missed = F.mse_loss(student(made.latents, made.timesteps, *with_it).float(), target.float())
    if not config.keep:
        return missed
    return missed + config.keep * diffusion_loss(student, schedule, anchors, generator, config.batch)


def layers(pipe: Pipeline, config: CAConfig) -> dict[Site, nn.Parameter]:
    """Return the weights to train."""
    if config.weights == "all":
        return weights(pipe, attention=True) | weights(pipe, attention=False)
    return {site: layer.get_parameter("weight") for site, layer in keys_and_values(pipe, "ca").items()}


METHOD = Fitted("ca", CAConfig, fit)
