"""ESD: a U-Net that is trained to predict the opposite of a concept for its words (Gandikota et al., Erasing Concepts
from Diffusion Models, ICCV 2023, eq. 7).

    min over θ of |ε_θ(x_t, c) - (ε*(x_t) - η (ε*(x_t, c) - ε*(x_t)))|²
at pictures x_t that the student itself has drawn of the concept up to a random step; ε* is the untouched U-Net. ESD-x
trains the cross-attention, for what is named, ESD-u everything else, for what is not. 200 steps of Adam at 5e-5, η = 2
and guidance 3 are those of the authors' code (rohitgandikota/erasing, MIT), as are the 50 steps that a picture would be
drawn in. Here the weights of linear and convolutional layers are trained, not their biases nor those of norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.errors import WrongModel
from excise.methods.build import proved
from excise.methods.configs.trained import ESDConfig
from excise.methods.trained.sampling import Conditioning, Predict, encode_conditioning, frozen_unet, sample_partly
from excise.methods.trained.trainer import Student, training, tune
from excise.pipeline import Pipeline
from excise.sites import Site
from excise.sites.denoiser import denoiser_of


def fit(pipe: Pipeline, concept: Concept, config: ESDConfig, method: str, *, attention: bool) -> Eraser:
    """The eraser of `concept` for `pipe`, trained in its cross-attention or in all but that, and proved.

    Raises ExciseError where the pipeline has no U-Net, or as `tune` does.
    """
    sides, empty = (
        [encode_conditioning(pipe, word, method) for word in concept.mentions],
        encode_conditioning(pipe, "", method),
    )
    student, teacher = Student(denoiser_of(pipe, "unet")[1], weights(pipe, attention)), frozen_unet(pipe)

    def loss(generator: torch.Generator) -> Tensor:
        return objective(pipe, student, teacher, sides, empty, generator, config)

    losses = tune(student, loss, config, training(method, pipe, concept))
    found = {"loss_first": losses[0], "loss_last": losses[-1]}
    return proved(pipe, student.edits(), concept, method, config.settings, found)


def objective(
    pipe: Pipeline,
    student: Predict,
    teacher: Predict,
    sides: Sequence[Conditioning],
    empty: Conditioning,
    generator: torch.Generator,
    config: ESDConfig,
) -> Tensor:
    """Eq. 7 at pictures of one of the concept's words, drawn up to a random step."""
    word = sides[int(torch.randint(len(sides), (1,), generator=generator))]
    done = int(torch.randint(config.steps, (1,), generator=generator))
    drawn = {"count": config.batch, "steps": config.steps, "done": done, "guidance": config.guidance}
    latents, timestep = sample_partly(pipe, student, word, empty, generator, **drawn)  # type: ignore[arg-type]
    with_it, without = (teacher(latents, timestep, *side.of(config.batch)) for side in (word, empty))
    aim = without - config.eta * (with_it - without)
    return F.mse_loss(student(latents, timestep, *word.of(config.batch)).float(), aim.float())


def weights(pipe: Pipeline, attention: bool) -> dict[Site, nn.Parameter]:
    """Of the linear and convolutional layers within the U-Net's cross-attention, or outside of it.

    Raises ExciseError where there are none.
    """
    layers: dict[str, Any] = dict(denoiser_of(pipe, "unet")[1].named_modules())
    found = {
        Site("unet", path, len(layer.weight)): layer.weight
        for path, layer in layers.items()
        if type(layer) in (nn.Linear, nn.Conv2d) and (".attn2." in path) is attention
    }
    if not found:
        raise WrongModel(f"esd-x trains the layers of attn2, and {type(pipe).__name__} has none; choose esd-u")
    return found
