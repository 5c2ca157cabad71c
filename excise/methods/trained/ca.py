"""CA: a U-Net that is trained to predict for a concept what it predicts for another, its anchor (Kumari et al.,
Ablating Concepts in Text-to-Image Diffusion Models, ICCV 2023, section 3).

    model:  min over θ of |ε_θ(x_t, c*) - ε*(x_t, c)|²
    noise:  min over θ of |ε_θ(x_t, c*) - ε|²
    both, where λ > 0:  + λ |ε_θ(x_t, c) - ε|²
at noised pictures x_t of the anchor, drawn once by the untouched U-Net ε*; c is their prompt, c* the same with the
concept. All timesteps weigh the same. A U-Net that predicts velocities has those in the place of ε. The paper takes
ε_θ(x_t, c) itself, its gradients stopped, for ε*(x_t, c), of which it is a stand-in that saves memory.

Keys and values of the cross-attention, 100 steps at 2e-6 for each of 8 pictures a step, λ = 0 (1 for memorised
pictures and for near concepts), and pictures in 50 steps at guidance 7.5 are those of the authors' code
(nupurkmr9/concept-ablation, MIT). It draws 200 to 1000 pictures, and adds weight decay, clipping and flipped pictures.
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
from excise.methods.build import proved
from excise.methods.closed_form.cross_attention import keys_and_values
from excise.methods.configs.trained import CAConfig
from excise.methods.trained.esd import weights
from excise.methods.trained.replay import (
    Pictures,
    beforehand,
    diffusion_loss,
    draw,
    prompt_pairs,
    told_each,
    training_schedule,
    with_noise,
)
from excise.methods.trained.sampling import Conditioning, Predict, collate, frozen_unet
from excise.methods.trained.trainer import Student, training, tune
from excise.pipeline import Pipeline
from excise.sites import Site
from excise.sites.denoiser import denoiser_of


def fit(pipe: Pipeline, concept: Concept, config: CAConfig | None = None) -> Eraser:
    """The eraser of `concept` for `pipe`, trained on pictures of its anchor, and proved.

    Raises ExciseError where the pipeline has no U-Net or its kind of prediction is unknown, where nothing says what the
    anchor is or it is the concept, or as `tune` does.
    """
    config = config or CAConfig()
    generator = beforehand(config)
    pairs = prompt_pairs(concept, config.anchor, config.pictures, generator, "anchor")
    words, instead = (told_each(pipe, side, "ca") for side in zip(*pairs, strict=True))
    trained, schedule = layers(pipe, config), training_schedule(pipe, "ca")
    anchors = draw(pipe, instead, config, generator, "ca")
    student, teacher = Student(denoiser_of(pipe, "unet")[1], trained), frozen_unet(pipe)

    def loss(generator: torch.Generator) -> Tensor:
        return objective(schedule, student, teacher, anchors, words, generator, config)

    losses = tune(student, loss, config, training("ca", pipe, concept))
    found = {"loss_first": losses[0], "loss_last": losses[-1]}
    return proved(pipe, student.edits(), concept, "ca", config.settings, found)


def objective(
    schedule: Any,
    student: Predict,
    teacher: Predict,
    anchors: Pictures,
    words: Sequence[Conditioning],
    generator: torch.Generator,
    config: CAConfig,
) -> Tensor:
    """At some of the anchor's pictures, of which `words` are the prompts with the concept."""
    some = torch.randint(len(words), (config.batch,), generator=generator).tolist()
    made = with_noise(schedule, anchors.latents[some], generator)
    with_it, instead = (collate([side[n] for n in some]) for side in (words, anchors.prompts))
    aim = teacher(made.latents, made.timesteps, *instead) if config.variant == "model" else made.aim
    missed = F.mse_loss(student(made.latents, made.timesteps, *with_it).float(), aim.float())
    if not config.keep:
        return missed
    return missed + config.keep * diffusion_loss(student, schedule, anchors, generator, config.batch)


def layers(pipe: Pipeline, config: CAConfig) -> dict[Site, nn.Parameter]:
    """The weights that are trained."""
    if config.weights == "all":
        return weights(pipe, attention=True) | weights(pipe, attention=False)
    return {site: layer.get_parameter("weight") for site, layer in keys_and_values(pipe, "ca").items()}


METHOD = Fitted("ca", CAConfig, fit)
