"""SPM: rank-1 adapters that erase the concept and leave other prompts alone (Lyu et al., One-dimensional Adapter to
Rule Them All: Concepts, Diffusion Models and Erasing Applications, CVPR 2024, section 3).

    min |ε_θ(x_t, c) - (ε(x_t) - η (ε(x_t, c) - ε(x_t)))|²  +  λ Σ_a |ε_θ(x_t, a) - ε(x_t, a)|²
x_t are pictures of the concept c that the student denoises up to a random step. The anchors a are random text states of
c's length, more likely the less they resemble c (latent anchoring, eqs. 6-7). At generation, every prompt weights the
adapters by how much of the concept it has (facilitated transport, eq. 8: `excise.erasers.apply.weights_by_prompt`).
Rank 1, lr 1e-4, 3000 steps, η = 1, λ = 1000, four anchors and guidance 3 are from the authors' code (Con6924/SPM,
Apache-2.0). Its cosine restarts of the learning rate are left out here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.erasers.edits.registry import Edit
from excise.erasers.edits.weights import PromptScaledEdit
from excise.methods.base import Fitted
from excise.methods.configs.trained import SPMConfig
from excise.methods.trained.esd import erasing_loss
from excise.methods.trained.sampling import Conditioning, Predict, encode_conditioning, frozen_unet
from excise.methods.trained.trainer import LowRank, layer_weights, train_eraser
from excise.pipeline import Pipeline
from excise.sites import Site
from excise.sites.denoiser import denoiser_of, whole


def fit(pipe: Pipeline, concept: Concept, config: SPMConfig | None = None) -> Eraser:
    """Train and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has no U-Net that reads one text encoder, or as `tune` does.
    """
    config = config or SPMConfig()
    whole(pipe, "spm")
    sides = [encode_conditioning(pipe, word, "spm") for word in concept.mentions]
    empty = encode_conditioning(pipe, "", "spm")
    start = torch.Generator().manual_seed(config.seed)
    student = Adapters(denoiser_of(pipe, "unet")[1], weights(pipe), {}, config.rank, start)
    teacher = frozen_unet(pipe)

    def loss(generator: torch.Generator) -> Tensor:
        return objective(pipe, student, teacher, sides, empty, generator, config)

    return train_eraser(pipe, student, loss, concept, "spm", config)


class Adapters(LowRank):
    """LowRank that is saved as edits weighted by the prompt."""

    def edits(self) -> list[Edit]:
        return [PromptScaledEdit(site, up=up, down=down) for site, (up, down) in self.saved_factors().items()]


def objective(
    pipe: Pipeline,
    student: Predict,
    teacher: Predict,
    sides: Sequence[Conditioning],
    empty: Conditioning,
    generator: torch.Generator,
    config: SPMConfig,
) -> Tensor:
    """Return the loss at pictures of one of the concept's words, denoised up to a random step."""
    word = sides[int(torch.randint(len(sides), (1,), generator=generator))]
    done = int(torch.randint(config.steps, (1,), generator=generator))
    erasing, latents, timestep = erasing_loss(pipe, student, teacher, student, word, empty, done, generator, config)
    states = anchors_near(word.states[0], config.anchors, generator)
    given = latents[:1].expand(config.anchors, -1, -1, -1), timestep, states, word.of(config.anchors)[1]
    anchoring = F.mse_loss(student(*given).float(), teacher(*given).float())
    return erasing + config.anchoring * anchoring


def anchors_near(states: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` random text states `[count, T, d]`, unlike `states` `[T, d]`.

    A direction is accepted with probability 1 - cosine to `states`. The norm is 0.8 to 1.2 times that of `states`.
    """
    own, kept = states.float().cpu(), list[Tensor]()
    while len(kept) < count:
        tried = torch.randn(own.shape, generator=generator)
        like = float(F.cosine_similarity(own.flatten(), tried.flatten(), dim=0))
        if float(torch.rand(1, generator=generator)) < 1 - like:
            scale = 0.8 + 0.4 * float(torch.rand(1, generator=generator))
            kept.append(scale * own.norm() * tried / tried.norm())
    return torch.stack(kept).to(states)


def weights(pipe: Pipeline) -> dict[Site, nn.Parameter]:
    """Return the weights of the linear and convolutional layers of a U-Net's transformers, ResNets and samplers."""
    unet = denoiser_of(pipe, "unet")[1]
    inside = ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D")
    homes = tuple(path + "." for path, module in unet.named_modules() if type(module).__name__ in inside)
    return layer_weights(unet, lambda path: path.startswith(homes))


METHOD = Fitted("spm", SPMConfig, fit)
