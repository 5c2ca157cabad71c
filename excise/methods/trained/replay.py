"""Training on a model's own pictures, shared by methods: prompts, pictures generated once, and the diffusion loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.concepts import Concept
from excise.concepts.concept import mentioned, without_mentions
from excise.errors import ExciseError, InvalidSetting
from excise.methods.configs.trained import ReplayConfig
from excise.methods.trained.sampling import Conditioning, Predict, collate, encode_conditioning, frozen_unet, sample
from excise.pipeline import Pipeline, as_diffusers

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Pictures:
    """Latents that a model generated, with a prompt for each."""

    latents: Tensor
    """`[n, C, h, w]`."""
    prompts: tuple[Conditioning, ...]


@dataclass(frozen=True, eq=False)
class Noised:
    """Latents with noise added."""

    latents: Tensor
    timesteps: Tensor
    target: Tensor
    """What the model was trained to predict for each: the noise, or the velocity."""


def setup_generator(config: ReplayConfig) -> torch.Generator:
    """Return the generator of everything random before training; its seed differs from every step's."""
    return torch.Generator().manual_seed(config.seed * 1_000_003 - 1)


def prompt_pairs(
    concept: Concept, instead: str, count: int, generator: torch.Generator, setting: str
) -> list[tuple[str, str]]:
    """Return `count` prompts with the concept, each with the same prompt with `instead` in its place.

    If `instead` is empty, they are the two sides of the concept's pairs. The order is that of `shuffled`. Raises
    ExciseError if `instead`, given as `setting`, mentions the concept, or if it is empty and the concept has no pairs.
    """
    mentions = concept.mentions
    if instead and mentioned(instead, mentions):
        raise InvalidSetting(f"{setting} {instead!r} is {concept.name!r}, which is to be erased; name something else")
    if instead:
        texts = [pair.concept for pair in concept.pairs if mentioned(pair.concept, mentions)] or mentions
        found = [(text, without_mentions(text, mentions, instead)) for text in dict.fromkeys(texts)]
    else:
        found = [(pair.concept, pair.deconcept) for pair in concept.pairs if not mentioned(pair.deconcept, mentions)]
    if not found:
        raise ExciseError(f"{concept.name!r} has no pairs to say what to generate instead; name it with {setting}")
    return shuffled(found, count, generator)


def shuffled(items: Sequence[T], count: int, generator: torch.Generator) -> list[T]:
    """Return `count` items in random order, all of them once before any repeats."""
    order = torch.randperm(len(items), generator=generator).tolist()
    return [items[order[n % len(items)]] for n in range(count)]


def encode_each(pipe: Pipeline, prompts: Sequence[str], method: str) -> tuple[Conditioning, ...]:
    """Encode each prompt for the U-Net. Raises ExciseError if the pipeline has no U-Net."""
    known = {prompt: encode_conditioning(pipe, prompt, method) for prompt in dict.fromkeys(prompts)}
    return tuple(known[prompt] for prompt in prompts)


def generate_pictures(
    pipe: Pipeline, prompts: Sequence[Conditioning], config: ReplayConfig, generator: torch.Generator, method: str
) -> Pictures:
    """Generate one picture for each prompt with the pipeline's own U-Net, a batch at a time."""
    empty, how = encode_conditioning(pipe, "", method), {"steps": config.steps, "guidance": config.guidance}
    parts = [prompts[start : start + config.batch] for start in range(0, len(prompts), config.batch)]
    made = [sample(pipe, frozen_unet(pipe), part, empty, generator, **how) for part in parts]  # type: ignore[arg-type]
    return Pictures(torch.cat(made), tuple(prompts))


def training_schedule(pipe: Pipeline, method: str) -> Any:
    """Return the noise schedule that the model was trained with, whatever scheduler the pipeline samples with.

    Raises ExciseError for a model that predicts neither the noise nor the velocity.
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


def add_training_noise(schedule: Any, latents: Tensor, generator: torch.Generator) -> Noised:
    """Add noise to each picture, up to a random timestep of the model's training."""
    steps = torch.randint(schedule.config.num_train_timesteps, (len(latents),), generator=generator).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    target = noise if schedule.config.prediction_type == "epsilon" else schedule.get_velocity(latents, noise, steps)
    return Noised(schedule.add_noise(latents, noise, steps), steps, target)


def diffusion_loss(
    predict: Predict, schedule: Any, pictures: Pictures, generator: torch.Generator, batch: int
) -> Tensor:
    """Return the model's training loss, |ε - ε_θ(x_t, c)|² or the velocity's, at a random batch of the pictures."""
    some = torch.randint(len(pictures.prompts), (batch,), generator=generator).tolist()
    made = add_training_noise(schedule, pictures.latents[some], generator)
    conditioning = collate([pictures.prompts[n] for n in some])
    return F.mse_loss(predict(made.latents, made.timesteps, *conditioning).float(), made.target.float())
