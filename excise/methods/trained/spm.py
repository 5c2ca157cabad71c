"""SPM: a thin membrane of rank-1 adapters that erases the concept, and lets pass what is not near it (Lyu et al.,
One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing Applications, CVPR 2024, section 3).

    min |ε_θ(x_t, c) - (ε(x_t) - η (ε(x_t, c) - ε(x_t)))|²  +  λ Σ_a |ε_θ(x_t, a) - ε(x_t, a)|²
at pictures x_t that the student has drawn of the concept c up to a random step. The anchors a are random text states
of c's length, likelier the less they are like c (latent anchoring, eqs. 6-7). When drawing, every prompt weighs the
adapters by how much of the concept is in it (facilitated transport, eq. 8: `excise.erasers.apply.weights_by_prompt`).
Rank 1, lr 1e-4, 3000 steps, η = 1, λ = 1000, four anchors and guidance 3 are those of the authors' code (Con6924/SPM,
Apache-2.0); their learning rate also restarts by a cosine, which is left out here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.erasers.edits.weights import PermeableEdit
from excise.methods.base import Fitted
from excise.methods.build import proved
from excise.methods.configs.trained import SPMConfig
from excise.methods.trained.sampling import Conditioning, Predict, encode_conditioning, frozen_unet, sample_partly
from excise.methods.trained.trainer import LowRank, training, tune
from excise.pipeline import Pipeline
from excise.sites import Site
from excise.sites.denoiser import denoiser_of, whole


def fit(pipe: Pipeline, concept: Concept, config: SPMConfig | None = None) -> Eraser:
    """The eraser of `concept` for `pipe`, trained and proved.

    Raises ExciseError where the pipeline has no U-Net that reads one text encoder, or as `tune` does.
    """
    config = config or SPMConfig()
    whole(pipe, "spm")
    sides, empty = (
        [encode_conditioning(pipe, word, "spm") for word in concept.mentions],
        encode_conditioning(pipe, "", "spm"),
    )
    lot = torch.Generator().manual_seed(config.seed)
    student = LowRank(denoiser_of(pipe, "unet")[1], weights(pipe), {}, config.rank, lot)
    teacher = frozen_unet(pipe)

    def loss(generator: torch.Generator) -> Tensor:
        return objective(pipe, student, teacher, sides, empty, generator, config)

    losses = tune(student, loss, config, training("spm", pipe, concept))
    edits = []
    for site in student.changes:
        up, down = (factor.detach().half().cpu().contiguous() for factor in student.factors(site))
        edits.append(PermeableEdit(site, up=up, down=down))
    found = {"loss_first": losses[0], "loss_last": losses[-1]}
    return proved(pipe, edits, concept, "spm", config.settings, found)


def objective(
    pipe: Pipeline,
    student: Predict,
    teacher: Predict,
    sides: Sequence[Conditioning],
    empty: Conditioning,
    generator: torch.Generator,
    config: SPMConfig,
) -> Tensor:
    """The loss at pictures of one of the concept's words, drawn up to a random step."""
    word = sides[int(torch.randint(len(sides), (1,), generator=generator))]
    done = int(torch.randint(config.steps, (1,), generator=generator))
    drawn = {"count": config.batch, "steps": config.steps, "done": done, "guidance": config.guidance}
    latents, timestep = sample_partly(pipe, student, word, empty, generator, **drawn)  # type: ignore[arg-type]
    with_it, without = (teacher(latents, timestep, *side.of(config.batch)) for side in (word, empty))
    aim = without - config.eta * (with_it - without)
    erasing = F.mse_loss(student(latents, timestep, *word.of(config.batch)).float(), aim.float())
    states = anchors_near(word.states[0], config.anchors, generator)
    given = latents[:1].expand(config.anchors, -1, -1, -1), timestep, states, word.of(config.anchors)[1]
    anchoring = F.mse_loss(student(*given).float(), teacher(*given).float())
    return erasing + config.anchoring * anchoring


def anchors_near(states: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`[count, T, d]`: directions by lot, kept with probability 1 - cosine to `states` `[T, d]`, of 0.8 to 1.2 times
    its norm."""
    own, kept = states.float().cpu(), list[Tensor]()
    while len(kept) < count:
        tried = torch.randn(own.shape, generator=generator)
        like = float(F.cosine_similarity(own.flatten(), tried.flatten(), dim=0))
        if float(torch.rand(1, generator=generator)) < 1 - like:
            scale = 0.8 + 0.4 * float(torch.rand(1, generator=generator))
            kept.append(scale * own.norm() * tried / tried.norm())
    return torch.stack(kept).to(states)


def weights(pipe: Pipeline) -> dict[Site, nn.Parameter]:
    """Of the linear and convolutional layers within a U-Net's transformers, residual blocks and samplers."""
    unet = denoiser_of(pipe, "unet")[1]
    inside = ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D")
    homes = [path + "." for path, module in unet.named_modules() if type(module).__name__ in inside]
    layers: dict[str, Any] = dict(unet.named_modules())
    return {
        Site("unet", path, len(layer.weight)): layer.weight
        for path, layer in layers.items()
        if type(layer) in (nn.Linear, nn.Conv2d) and any(path.startswith(home) for home in homes)
    }


METHOD = Fitted("spm", SPMConfig, fit)
