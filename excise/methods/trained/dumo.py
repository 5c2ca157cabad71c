"""DuMo: a copy of the U-Net's encoder erases the concept, by way of the skip connections alone (Han et al., DuMo: Dual
Encoder Modulation Network for Precise Concept Erasure, AAAI 2025, arXiv 2501.01125: EPR and TLMO).

The U-Net stays as it is. Of every skip connection l, f_l of its encoder becomes f_l + α[t, l] (g_l - f_l), where g_l is
what a copy of the encoder with other weights W + B A makes of the same picture, timestep and text. Trained are
1. the copy (EPR, the Eraser with PRior knowledge), with all α = 1,
2. α = σ(a), one for every bin of timesteps and every skip connection (TLMO, the Time-Layer MOdulation), the copy fixed,
each to make the same small:
    |ε_θ(x_t, c) - (ε(x_t) - η (ε(x_t, c) - ε(x_t)))|²  +  λ |ε_θ(x_t, p) - ε(x_t, p)|²
The x_t of the first term are pictures of a prompt c with the concept, drawn by the student up to a random step; those
of the second pictures of another prompt p, drawn by the untouched model ε up to the same step.

This is after DuMo: its training code is not public, and only its abstract and the authors' code for drawing could be
read (Maplebb/DuMo, no licence; nothing of it is here). From the latter are 20 bins of 50 timesteps each, with one
coefficient for every skip connection, and that the copy adds nothing at the start. Assumed are:
- both losses, which are those of ESD and SPM; their weight, η, and that α is trained after the copy, by them too;
- the copy's weights: low-rank changes of its linear and convolutional layers. Theirs is trained whole and ends in 1 x 1
  convolutions that begin at 0; that would be gigabytes, and half the model again in memory;
- that α is between 0 and 1, so that what is drawn lies between both encoders; theirs are any numbers;
- that the middle block is left alone, as the abstract has it; theirs adds something there too;
- that every prompt is edited alike. Their code does so for nudity; for artists and characters it weighs each prompt by
  SPM's likeness to the concept's words (`excise.erasers.apply.weights_by_prompt`);
- all other numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.concepts import Concept
from excise.concepts.concept import mentioned
from excise.erasers import Eraser
from excise.erasers.apply.skips import modulating, skips_of
from excise.erasers.edits.skips import ModulationEdit, bins_of
from excise.erasers.edits.weights import CopyEdit
from excise.erasers.hooks.context import unedited
from excise.methods.base import Fitted
from excise.methods.build import proved
from excise.methods.configs.trained import DuMoConfig
from excise.methods.trained.replay import told_each
from excise.methods.trained.sampling import Conditioning, Predict, encode_conditioning, frozen_unet, sample_partly
from excise.methods.trained.trainer import LowRank, Student, training, tune
from excise.pipeline import Pipeline, as_diffusers
from excise.sites import Site
from excise.sites.denoiser import denoiser_of


class Copied(LowRank):
    """The U-Net with its skip connections modulated by a copy of its encoder, whose changes are trained; α = 1."""

    def __call__(self, sample: Tensor, timestep: Any, states: Tensor, more: Mapping[str, Any]) -> Tensor:
        count = skips_of(self.denoiser)

        def ones(timesteps: Tensor) -> Tensor:
            return torch.ones(len(timesteps), count, device=timesteps.device)

        return modulated(self.denoiser, ones, self.weights(), sample, timestep, states, more)


class Balanced(Student):
    """The same with a fixed copy, and α = σ(a) by bin of timesteps and skip connection, which are trained."""

    def __init__(self, copy: Student, site: Site, timesteps: int, config: DuMoConfig) -> None:
        super().__init__(copy.denoiser, {})
        self.site, self.timesteps = site, timesteps
        self.fixed = {name: weight.detach() for name, weight in copy.weights().items()}
        first = torch.full((config.bins, skips_of(copy.denoiser)), config.alpha_first).logit()
        self.changes[site] = first.to(next(copy.denoiser.parameters()).device).requires_grad_()

    def alpha(self) -> Tensor:
        """`[bins, l]`, float32."""
        return self.changes[self.site].sigmoid()

    def __call__(self, sample: Tensor, timestep: Any, states: Tensor, more: Mapping[str, Any]) -> Tensor:
        alpha = self.alpha()

        def at(timesteps: Tensor) -> Tensor:
            return alpha[bins_of(timesteps, len(alpha), self.timesteps)]

        return modulated(self.denoiser, at, self.fixed, sample, timestep, states, more)


def modulated(
    unet: nn.Module,
    coefficients: Callable[[Tensor], Tensor],
    weights: Mapping[str, Tensor],
    sample: Tensor,
    timestep: Any,
    states: Tensor,
    more: Mapping[str, Any],
) -> Tensor:
    """What the U-Net predicts beside a copy of its encoder with these weights; whatever is attached does not act."""
    with unedited(), modulating(unet, coefficients, weights):
        made: Tensor = unet(sample, timestep, encoder_hidden_states=states, return_dict=False, **more)[0]
    return made


def fit(pipe: Pipeline, concept: Concept, config: DuMoConfig | None = None) -> Eraser:
    """The eraser of `concept` for `pipe`, trained and proved.

    Raises ExciseError where the pipeline has no U-Net with skip connections, or as `tune` does.
    """
    config, empty = config or DuMoConfig(), encode_conditioning(pipe, "", "dumo")
    unet: Any = denoiser_of(pipe, "unet")[1]
    site, timesteps = (
        Site("unet", "", int(unet.config.out_channels)),
        int(as_diffusers(pipe).scheduler.config.num_train_timesteps),
    )
    skips_of(unet)
    said, kept = prompts(concept, config.pairs)
    words, others = told_each(pipe, said, "dumo"), told_each(pipe, kept, "dumo")
    teacher = frozen_unet(pipe)
    copy = Copied(unet, weights(unet), {}, config.rank, torch.Generator().manual_seed(config.seed))

    def trained(student: Student, own: DuMoConfig, stage: str) -> list[float]:
        def loss(generator: torch.Generator) -> Tensor:
            return objective(pipe, student, teacher, words, others, empty, generator, config)

        return tune(student, loss, own, training("dumo", pipe, concept, stage))

    losses, alpha = trained(copy, config.stage("copy"), "copy"), torch.ones(config.bins, skips_of(unet))
    if config.alpha_iterations:
        balanced = Balanced(copy, site, timesteps, config)
        own = config.stage("alpha", iterations=config.alpha_iterations, lr=config.alpha_lr)
        losses += trained(balanced, own, f"alpha after {losses[-1]}")
        alpha = balanced.alpha().detach().cpu()
    edits: list[ModulationEdit | CopyEdit] = [ModulationEdit(site, alpha, timesteps)]
    for layer in copy.changes:
        up, down = (factor.detach().half().cpu().contiguous() for factor in copy.factors(layer))
        edits.append(CopyEdit(layer, up=up, down=down))
    found = {"loss_first": losses[0], "loss_last": losses[-1], "alpha_mean": float(alpha.mean())}
    return proved(pipe, edits, concept, "dumo", config.settings, found)


def objective(
    pipe: Pipeline,
    student: Predict,
    teacher: Predict,
    words: Sequence[Conditioning],
    others: Sequence[Conditioning],
    empty: Conditioning,
    generator: torch.Generator,
    config: DuMoConfig,
) -> Tensor:
    """The loss at pictures of one of the concept's prompts and of one other, drawn up to a random step."""
    word = words[int(torch.randint(len(words), (1,), generator=generator))]
    other = others[int(torch.randint(len(others), (1,), generator=generator))]
    done = int(torch.randint(config.steps, (1,), generator=generator))
    how: dict[str, Any] = {"count": config.batch, "steps": config.steps, "done": done, "guidance": config.guidance}
    latents, timestep = sample_partly(pipe, student, word, empty, generator, **how)
    with_it, without = (teacher(latents, timestep, *side.of(config.batch)) for side in (word, empty))
    aim = without - config.eta * (with_it - without)
    erasing = F.mse_loss(student(latents, timestep, *word.of(config.batch)).float(), aim.float())
    if not config.keep:
        return erasing
    latents, timestep = sample_partly(pipe, teacher, other, empty, generator, **how)
    given = latents, timestep, *other.of(config.batch)
    return erasing + config.keep * F.mse_loss(student(*given).float(), teacher(*given).float())


def prompts(concept: Concept, most: int) -> tuple[list[str], list[str]]:
    """The concept's prompts that are trained on, its mentions among them; and others, the empty one among them."""
    said = _some([pair.concept for pair in concept.pairs], most)
    kept = [*_some([pair.deconcept for pair in concept.pairs], most), *_some(concept.controls, most)]
    return (
        list(dict.fromkeys([*concept.mentions, *said])),
        list(dict.fromkeys(["", *(text for text in kept if not mentioned(text, concept.mentions))])),
    )


def _some(texts: Sequence[str], most: int) -> list[str]:
    """Evenly spread ones, at most so many."""
    count = min(most, len(texts))
    return [texts[n * len(texts) // count] for n in range(count)]


def weights(unet: nn.Module) -> dict[Site, nn.Parameter]:
    """Of the linear and convolutional layers of a U-Net's encoder."""
    layers: dict[str, Any] = dict(unet.named_modules())
    return {
        Site("unet", path, len(layer.weight)): layer.weight
        for path, layer in layers.items()
        if type(layer) in (nn.Linear, nn.Conv2d) and path.startswith(("conv_in", "down_blocks."))
    }


METHOD = Fitted("dumo", DuMoConfig, fit)
