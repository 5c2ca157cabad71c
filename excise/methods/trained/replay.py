"""What methods that train on a model's own pictures share: prompts, pictures drawn once, and the loss it learnt by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.concepts import Concept
from excise.concepts.concept import mentioned, without_mentions
from excise.errors import ExciseError, InvalidSetting
from excise.methods.configs.trained import ReplayConfig
from excise.methods.trained.sampling import Conditioning, Predict, collate, encode_conditioning, frozen_unet, sample
from excise.pipeline import Pipeline, as_diffusers


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures that a model has drawn, and a prompt for each."""

    latents: Tensor
    """`[n, C, h, w]`."""
    prompts: tuple[Conditioning, ...]


@dataclass(frozen=True, eq=False)
class Noised:
    """Pictures with noise."""

    latents: Tensor
    timesteps: Tensor
    aim: Tensor
    """What the model has learnt to predict of each: the noise, or the velocity."""


def beforehand(config: ReplayConfig) -> torch.Generator:
    """For what is drawn by lot before the training; none of its steps has this seed."""
    return torch.Generator().manual_seed(config.seed * 1_000_003 - 1)


def prompt_pairs(
    concept: Concept, instead: str, count: int, generator: torch.Generator, setting: str
) -> list[tuple[str, str]]:
    """`count` prompts with the concept, each with the same prompt that has `instead` in its place; where that is empty,
    the sides of the concept's pairs. By lot, all of them once before any comes again.

    Raises ExciseError where `instead`, given as `setting`, is the concept, or there are neither it nor pairs.
    """
    mentions = concept.mentions
    if instead and mentioned(instead, mentions):
        raise InvalidSetting(f"{setting} {instead!r} is {concept.name!r}, which is to be erased; name something else")
    if instead:
        said = [pair.concept for pair in concept.pairs if mentioned(pair.concept, mentions)] or mentions
        found = [(text, without_mentions(text, mentions, instead)) for text in dict.fromkeys(said)]
    else:
        found = [(pair.concept, pair.deconcept) for pair in concept.pairs if not mentioned(pair.deconcept, mentions)]
    if not found:
        raise ExciseError(f"{concept.name!r} has no pairs to say what shall be drawn instead; name it with {setting}")
    order = torch.randperm(len(found), generator=generator).tolist()
    return [found[order[n % len(found)]] for n in range(count)]


def told_each(pipe: Pipeline, prompts: Sequence[str], method: str) -> tuple[Conditioning, ...]:
    """What the pipeline tells its U-Net of each prompt. Raises ExciseError where it has no U-Net."""
    known = {prompt: encode_conditioning(pipe, prompt, method) for prompt in dict.fromkeys(prompts)}
    return tuple(known[prompt] for prompt in prompts)


def draw(
    pipe: Pipeline, prompts: Sequence[Conditioning], config: ReplayConfig, generator: torch.Generator, method: str
) -> Pictures:
    """One picture of each prompt, by the pipeline's own U-Net, a batch at a time."""
    empty, how = encode_conditioning(pipe, "", method), {"steps": config.steps, "guidance": config.guidance}
    parts = [prompts[start : start + config.batch] for start in range(0, len(prompts), config.batch)]
    made = [sample(pipe, frozen_unet(pipe), part, empty, generator, **how) for part in parts]  # type: ignore[arg-type]
    return Pictures(torch.cat(made), tuple(prompts))


def training_schedule(pipe: Pipeline, method: str) -> Any:
    """The noise that the pipeline's model was trained with, whatever scheduler it draws with.

    Raises ExciseError for a model that has learnt to predict neither the noise nor the velocity.
    """
    from diffusers import DDPMScheduler

    config = as_diffusers(pipe).scheduler.config
    kind = config.get("prediction_type") if "beta_start" in config else None
    if kind not in ("epsilon", "v_prediction"):
        raise ExciseError(
            f"{method} trains models that predict noise or velocity (epsilon, v_prediction); "
            f"{type(as_diffusers(pipe).scheduler).__name__} says {kind or 'neither'}; choose another method"
        )
    return DDPMScheduler.from_config(config)


def with_noise(schedule: Any, latents: Tensor, generator: torch.Generator) -> Noised:
    """The pictures, each with noise up to a random timestep of the model's training."""
    steps = torch.randint(schedule.config.num_train_timesteps, (len(latents),), generator=generator).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    aim = noise if schedule.config.prediction_type == "epsilon" else schedule.get_velocity(latents, noise, steps)
    return Noised(schedule.add_noise(latents, noise, steps), steps, aim)


def diffusion_loss(
    predict: Predict, schedule: Any, pictures: Pictures, generator: torch.Generator, batch: int
) -> Tensor:
    """What the model was trained to make small, |ε - ε_θ(x_t, c)|² or the velocity's, at some of the pictures."""
    some = torch.randint(len(pictures.prompts), (batch,), generator=generator).tolist()
    made = with_noise(schedule, pictures.latents[some], generator)
    told_of = collate([pictures.prompts[n] for n in some])
    return F.mse_loss(predict(made.latents, made.timesteps, *told_of).float(), made.aim.float())
