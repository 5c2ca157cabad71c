"""ESD: train a U-Net to predict the opposite of a concept for its words (Gandikota et al., Erasing Concepts from
Diffusion Models, ICCV 2023, eq. 7).

    min over θ of |ε_θ(x_t, c) - (ε*(x_t) - η (ε*(x_t, c) - ε*(x_t)))|²
ε* is the untouched U-Net, which also denoises the pictures x_t of the concept up to a random step. ESD-x trains the
cross-attention, for concepts that prompts name; ESD-u trains everything else, for concepts that they do not. 200 steps
of Adam at 5e-5, guidance 3, 50 denoising steps, and the untouched U-Net as the one that denoises x_t are from the
authors' code (rohitgandikota/erasing, MIT). In the paper, the student denoises x_t. The code's `negative_guidance` of 2
counts from the concept's prediction, so its target is eq. 7's with the paper's η = 1. Here the weights of linear and
convolutional layers are trained, not their biases nor normalisation layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.errors import WrongModel
from excise.methods.configs.trained import DuMoConfig, ESDConfig, SPMConfig
from excise.methods.trained.sampling import Conditioning, Predict, encode_conditioning, frozen_unet, sample_partly
from excise.methods.trained.trainer import Student, layer_weights, train_eraser
from excise.pipeline import Pipeline
from excise.sites import Site
from excise.sites.denoiser import denoiser_of


def fit(pipe: Pipeline, concept: Concept, config: ESDConfig, method: str, *, attention: bool) -> Eraser:
    """Train the eraser of `concept` for `pipe`, in its cross-attention or in everything else, and self-test it.

    Raises ExciseError if the pipeline has no U-Net, or as `tune` does.
    """
    sides = [encode_conditioning(pipe, word, method) for word in concept.mentions]
    empty = encode_conditioning(pipe, "", method)
    student, teacher = Student(denoiser_of(pipe, "unet")[1], weights(pipe, attention)), frozen_unet(pipe)

    def loss(generator: torch.Generator) -> Tensor:
        return objective(pipe, student, teacher, sides, empty, generator, config)

    return train_eraser(pipe, student, loss, concept, method, config)


def objective(
    pipe: Pipeline,
    student: Predict,
    teacher: Predict,
    sides: Sequence[Conditioning],
    empty: Conditioning,
    generator: torch.Generator,
    config: ESDConfig,
) -> Tensor:
    """Return eq. 7's loss at pictures of one of the concept's words, denoised up to a random step."""
    word = sides[int(torch.randint(len(sides), (1,), generator=generator))]
    done = int(torch.randint(config.steps, (1,), generator=generator))
    return erasing_loss(pipe, student, teacher, teacher, word, empty, done, generator, config)[0]


def erasing_loss(
    pipe: Pipeline,
    student: Predict,
    teacher: Predict,
    sampler: Predict,
    word: Conditioning,
    empty: Conditioning,
    done: int,
    generator: torch.Generator,
    config: ESDConfig | SPMConfig | DuMoConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return eq. 7's loss at pictures of `word` that `sampler` denoised for `done` steps, with latents and timestep.

    SPM and DuMo use it too, with the student as sampler and a term of their own that keeps other prompts.
    """
    drawn = {"count": config.batch, "steps": config.steps, "done": done, "guidance": config.guidance}
    latents, timestep = sample_partly(pipe, sampler, word, empty, generator, **drawn)  # type: ignore[arg-type]
    with_it, without = (teacher(latents, timestep, *side.of(config.batch)) for side in (word, empty))
    target = esd_target(with_it, without, config.eta)
    loss = F.mse_loss(student(latents, timestep, *word.of(config.batch)).float(), target.float())
    return loss, latents, timestep


def esd_target(with_it: Tensor, without: Tensor, eta: float) -> Tensor:
    """Return eq. 7's target: classifier-free guidance of weight `eta` away from the concept.

    Args:
        with_it: The untouched model's prediction for the concept, ε*(x_t, c).
        without: Its unconditional prediction ε*(x_t), of the same shape.
        eta: η, how far the target lies beyond the unconditional prediction.
    """
    return without - eta * (with_it - without)


def weights(pipe: Pipeline, attention: bool) -> dict[Site, nn.Parameter]:
    """Return the weights of the linear and convolutional layers inside the U-Net's cross-attention, or outside of it.

    Raises ExciseError if there are none.
    """
    found = layer_weights(denoiser_of(pipe, "unet")[1], lambda path: (".attn2." in path) is attention)
    if not found:
        raise WrongModel(f"esd-x trains the layers of attn2, and {type(pipe).__name__} has none; choose esd-u")
    return found
