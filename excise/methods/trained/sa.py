"""SA: train a U-Net to generate other things for a concept's prompts, as one more task of a continual learner that must
not forget the rest (Heng & Soh, Selective Amnesia, NeurIPS 2023, section 3).

    min over θ of  E_q(x|c_f) ℓ(θ; x, c_f) + γ E_p(x|c_r) ℓ(θ; x, c_r) + λ/2 Σ_i F_i (θ_i - θ*_i)²
    F_i = E_p(x|c_r) (∂/∂θ_i Σ_t ℓ_t(θ*; x, c_r))²
ℓ is the model's own loss |ε - ε_θ(x_t, c)|² (or the velocity's) at a random timestep, which stands for -log p(x|θ, c).
q are pictures of something else, paired with the concept's prompts c_f. p are pictures by the untouched model θ* for
other prompts c_r; they are replayed, and give the diagonal F of its Fisher information.

λ = 50, γ = 1, 1e-5, batches of 4, and pictures in 50 steps at guidance 7.5 are from the authors' code
(clear-nus/selective-amnesia, MIT). That code has λ for λ/2 and sums F's gradient over all timesteps; here it is
estimated from some. It trains the whole U-Net for people and all but the cross-attention for nudity, on 1000 pictures
for 200 to 500 epochs. Here the cross-attention is the default, as for ESD-x, since the prompts name the concept.
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
from excise.methods.configs.trained import SAConfig
from excise.methods.trained.esd import weights
from excise.methods.trained.replay import (
    Pictures,
    add_training_noise,
    diffusion_loss,
    encode_each,
    generate_pictures,
    prompt_pairs,
    setup_generator,
    shuffled,
    training_schedule,
)
from excise.methods.trained.sampling import Predict
from excise.methods.trained.trainer import Student, train_eraser
from excise.pipeline import Pipeline
from excise.sites import Site
from excise.sites.denoiser import denoiser_of

PARTS = {"cross-attention": (True,), "rest": (False,), "all": (True, False)}


def fit(pipe: Pipeline, concept: Concept, config: SAConfig | None = None) -> Eraser:
    """Train the eraser of `concept` for `pipe` on the model's own pictures, and self-test it.

    Raises ExciseError if the pipeline has no U-Net or an unknown prediction type, if there is no surrogate or it
    mentions the concept, or as `tune` does.
    """
    config = config or SAConfig()
    generator = setup_generator(config)
    pairs = prompt_pairs(concept, config.surrogate, config.pictures, generator, "surrogate")
    others = other_prompts(concept, config.fisher, generator)
    words, instead = (encode_each(pipe, side, "sa") for side in zip(*pairs, strict=True))
    schedule = training_schedule(pipe, "sa")
    replayed = generate_pictures(pipe, encode_each(pipe, others, "sa"), config, generator, "sa")
    forgotten = Pictures(generate_pictures(pipe, instead, config, generator, "sa").latents, words)
    student = Student(denoiser_of(pipe, "unet")[1], layers(pipe, config))
    importance = fisher(student, schedule, replayed, student.changes, generator, config.timesteps)

    def loss(generator: torch.Generator) -> Tensor:
        missed = objective(schedule, student, forgotten, replayed, generator, config)
        return missed + forgetting_penalty(student.changes, importance, config.lam)

    return train_eraser(pipe, student, loss, concept, "sa", config)


def objective(
    schedule: Any,
    student: Predict,
    forgotten: Pictures,
    replayed: Pictures,
    generator: torch.Generator,
    config: SAConfig,
) -> Tensor:
    """Return the losses at random batches of both kinds: pictures to learn instead, and pictures to keep."""
    learnt = diffusion_loss(student, schedule, forgotten, generator, config.batch)
    return learnt + config.keep * diffusion_loss(student, schedule, replayed, generator, config.batch)


def forgetting_penalty(changes: Mapping[Site, Tensor], importance: Mapping[Site, Tensor], lam: float) -> Tensor:
    """Return λ/2 Σ_i F_i (θ_i - θ*_i)²."""
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
    """Return F of every weight: the squared gradient of each picture's loss, averaged over the pictures.

    A picture's loss is the sum over all timesteps, estimated from `timesteps` random ones.
    """
    total = {site: torch.zeros_like(change) for site, change in changes.items()}
    for picture, prompt in zip(pictures.latents, pictures.prompts, strict=True):
        made = add_training_noise(schedule, picture.expand(timesteps, *picture.shape), generator)
        predicted = predict(made.latents, made.timesteps, *prompt.of(timesteps))
        summed = schedule.config.num_train_timesteps * F.mse_loss(predicted.float(), made.target.float())
        for own, slope in zip(total.values(), torch.autograd.grad(summed, list(changes.values())), strict=True):
            own += slope.square() / len(pictures.prompts)
    return total


def other_prompts(concept: Concept, count: int, generator: torch.Generator) -> list[str]:
    """Return `count` of the concept's controls, or of its deconcept prompts if it has no controls, `shuffled`.

    Raises ExciseError if there are neither.
    """
    texts = concept.controls or tuple(pair.deconcept for pair in concept.pairs)
    found = [text for text in dict.fromkeys(texts) if not mentioned(text, concept.mentions)]
    if not found:
        raise ExciseError(f"{concept.name!r} has neither controls nor pairs to say which pictures stay; add some")
    return shuffled(found, count, generator)


def layers(pipe: Pipeline, config: SAConfig) -> dict[Site, nn.Parameter]:
    """Return the weights to train."""
    return {site: weight for attention in PARTS[config.weights] for site, weight in weights(pipe, attention).items()}


METHOD = Fitted("sa", SAConfig, fit)
