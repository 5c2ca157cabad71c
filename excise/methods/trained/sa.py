"""SA: a U-Net that learns to draw other things under a concept's prompts, as one more task of a continual learner that
must not forget the rest (Heng & Soh, Selective Amnesia, NeurIPS 2023, section 3).

    min over θ of  E_q(x|c_f) ℓ(θ; x, c_f) + γ E_p(x|c_r) ℓ(θ; x, c_r) + λ/2 Σ_i F_i (θ_i - θ*_i)²
    F_i = E_p(x|c_r) (∂/∂θ_i Σ_t ℓ_t(θ*; x, c_r))²
ℓ is the model's own loss |ε - ε_θ(x_t, c)|² (or the velocity's) at a random timestep, which stands for -log p(x|θ, c);
q are pictures of something else, told as the concept's c_f; p are the untouched model's θ* own pictures of other
prompts c_r, which are replayed and give the diagonal F of its Fisher information.

λ = 50, γ = 1, 1e-5, batches of 4, and pictures in 50 steps at guidance 7.5 are those of the authors' code
(clear-nus/selective-amnesia, MIT), which has λ for λ/2 and sums F's gradient over all timesteps; here it is estimated
from some. It trains the whole U-Net for people and all but the cross-attention for nudity, on 1000 pictures for 200 to
500 epochs. Here the cross-attention is the default, as for ESD-x, since the prompts name the concept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.concepts import Concept
from excise.concepts.concept import mentioned
from excise.erasers import Eraser
from excise.errors import ExciseError
from excise.methods.base import Fitted
from excise.methods.build import proved
from excise.methods.configs.trained import SAConfig
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
from excise.methods.trained.sampling import Predict
from excise.methods.trained.trainer import Student, training, tune
from excise.pipeline import Pipeline
from excise.sites import Site
from excise.sites.denoiser import denoiser_of

PARTS = {"cross-attention": (True,), "rest": (False,), "all": (True, False)}


def fit(pipe: Pipeline, concept: Concept, config: SAConfig | None = None) -> Eraser:
    """The eraser of `concept` for `pipe`, trained on its own pictures, and proved.

    Raises ExciseError where the pipeline has no U-Net or its kind of prediction is unknown, where nothing says what
    else is to be drawn or it is the concept, or as `tune` does.
    """
    config = config or SAConfig()
    generator = beforehand(config)
    pairs = prompt_pairs(concept, config.surrogate, config.pictures, generator, "surrogate")
    others = other_prompts(concept, config.fisher, generator)
    words, instead = (told_each(pipe, side, "sa") for side in zip(*pairs, strict=True))
    schedule = training_schedule(pipe, "sa")
    replayed = draw(pipe, told_each(pipe, others, "sa"), config, generator, "sa")
    forgotten = Pictures(draw(pipe, instead, config, generator, "sa").latents, words)
    student = Student(denoiser_of(pipe, "unet")[1], layers(pipe, config))
    importance = fisher(student, schedule, replayed, student.changes, generator, config.timesteps)

    def loss(generator: torch.Generator) -> Tensor:
        missed = objective(schedule, student, forgotten, replayed, generator, config)
        return missed + held(student.changes, importance, config.lam)

    losses = tune(student, loss, config, training("sa", pipe, concept))
    found = {"loss_first": losses[0], "loss_last": losses[-1]}
    return proved(pipe, student.edits(), concept, "sa", config.settings, found)


def objective(
    schedule: Any,
    student: Predict,
    forgotten: Pictures,
    replayed: Pictures,
    generator: torch.Generator,
    config: SAConfig,
) -> Tensor:
    """The losses at some pictures of both kinds: what is learnt instead, and what is not to be lost."""
    learnt = diffusion_loss(student, schedule, forgotten, generator, config.batch)
    return learnt + config.keep * diffusion_loss(student, schedule, replayed, generator, config.batch)


def held(changes: Mapping[Site, Tensor], importance: Mapping[Site, Tensor], lam: float) -> Tensor:
    """λ/2 Σ_i F_i (θ_i - θ*_i)²."""
    parts = [(importance[site] * change.square()).sum() for site, change in changes.items()]
    return lam / 2 * torch.stack(parts).sum()


def fisher(
    predict: Predict,
    schedule: Any,
    pictures: Pictures,
    changes: Mapping[Site, Tensor],
    generator: torch.Generator,
    timesteps: int,
) -> dict[Site, Tensor]:
    """F of every weight, over the pictures: the square of the gradient of each one's loss, summed over all timesteps
    (estimated from so many)."""
    total = {site: torch.zeros_like(change) for site, change in changes.items()}
    for picture, prompt in zip(pictures.latents, pictures.prompts, strict=True):
        made = with_noise(schedule, picture.expand(timesteps, *picture.shape), generator)
        predicted = predict(made.latents, made.timesteps, *prompt.of(timesteps))
        summed = schedule.config.num_train_timesteps * F.mse_loss(predicted.float(), made.aim.float())
        for own, slope in zip(total.values(), torch.autograd.grad(summed, list(changes.values())), strict=True):
            own += slope.square() / len(pictures.prompts)
    return total


def other_prompts(concept: Concept, count: int, generator: torch.Generator) -> list[str]:
    """`count` of the concept's controls, or of its deconcept prompts where it has none; by lot, all of them once before
    any comes again. Raises ExciseError where there are none."""
    texts = concept.controls or tuple(pair.deconcept for pair in concept.pairs)
    found = [text for text in dict.fromkeys(texts) if not mentioned(text, concept.mentions)]
    if not found:
        raise ExciseError(f"{concept.name!r} has neither controls nor pairs, of which pictures are to stay; add some")
    order = torch.randperm(len(found), generator=generator).tolist()
    return [found[order[n % len(found)]] for n in range(count)]


def layers(pipe: Pipeline, config: SAConfig) -> dict[Site, nn.Parameter]:
    """The weights that are trained."""
    return {site: weight for attention in PARTS[config.weights] for site, weight in weights(pipe, attention).items()}


METHOD = Fitted("sa", SAConfig, fit)
