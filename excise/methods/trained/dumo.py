"""DuMo: train a copy of the U-Net's encoder that erases the concept through the skip connections alone (Han et al.,
DuMo: Dual Encoder Modulation Network for Precise Concept Erasure, AAAI 2025, arXiv 2501.01125: EPR and TLMO).

The U-Net stays as it is. For every skip connection l, its encoder's f_l becomes f_l + α[t, l] (g_l - f_l). A copy of
the encoder with weights W + B A computes g_l from the same latents, timestep and text. Training has two stages:
1. the copy (EPR, the Eraser with PRior knowledge), with all α = 1,
2. α = σ(a), one for every bin of timesteps and every skip connection (TLMO, the Time-Layer MOdulation), the copy fixed.
Both minimise the same loss:
    |ε_θ(x_t, c) - (ε(x_t) - η (ε(x_t, c) - ε(x_t)))|²  +  λ |ε_θ(x_t, p) - ε(x_t, p)|²
In the first term, the student denoises x_t for a prompt c with the concept, up to a random step. In the second, the
untouched model ε denoises x_t for another prompt p, up to the same step.

This only follows DuMo: its training code is not public, so it rests on the abstract and the authors' inference code
(Maplebb/DuMo, no licence; none of it is used). That code gives 20 bins of 50 timesteps each, one coefficient for every
skip connection, and a copy that initially adds nothing. Assumptions:
- both losses are those of ESD and SPM; so are their weight, η, and α being trained after the copy with the same losses;
- the copy's weights are low-rank changes of its linear and convolutional layers. Theirs is trained whole and ends in
  zero-initialised 1 x 1 convolutions; that would take gigabytes, and half the model's memory again;
- α lies between 0 and 1, so that the result lies between both encoders; theirs are any numbers;
- the middle block is left alone, as in the abstract; theirs adds to it too;
- every prompt is edited equally. Their code does so for nudity; for artists and characters it weights each prompt by
  SPM's similarity to the concept's words (`excise.erasers.apply.weights_by_prompt`);
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
from excise.methods.build import build_eraser
from excise.methods.configs.trained import DuMoConfig
from excise.methods.trained.esd import erasing_loss
from excise.methods.trained.replay import encode_each
from excise.methods.trained.sampling import Conditioning, Predict, encode_conditioning, frozen_unet, sample_partly
from excise.methods.trained.trainer import LowRank, Student, layer_weights, training_digest, tune
from excise.pipeline import Pipeline, as_diffusers
from excise.sites import Site
from excise.sites.denoiser import denoiser_of


class Copied(LowRank):
    """U-Net whose skip connections are modulated by a copy of its encoder, with trained low-rank changes; α = 1."""

    def __call__(self, sample: Tensor, timestep: Any, states: Tensor, more: Mapping[str, Any]) -> Tensor:
        count = skips_of(self.denoiser)

        def ones(timesteps: Tensor) -> Tensor:
            return torch.ones(len(timesteps), count, device=timesteps.device)

        return predict_modulated(self.denoiser, ones, self.weights(), sample, timestep, states, more)


class Balanced(Student):
    """U-Net modulated by a fixed copy, with trained α = σ(a) by bin of timesteps and skip connection."""

    def __init__(self, copy: Student, site: Site, timesteps: int, config: DuMoConfig) -> None:
        super().__init__(copy.denoiser, {})
        self.site, self.timesteps = site, timesteps
        self.fixed = {name: weight.detach() for name, weight in copy.weights().items()}
        first = torch.full((config.bins, skips_of(copy.denoiser)), config.alpha_first).logit()
        self.changes[site] = first.to(next(copy.denoiser.parameters()).device).requires_grad_()

    def alpha(self) -> Tensor:
        """Return α `[bins, l]`, float32."""
        return self.changes[self.site].sigmoid()

    def __call__(self, sample: Tensor, timestep: Any, states: Tensor, more: Mapping[str, Any]) -> Tensor:
        alpha = self.alpha()

        def at(timesteps: Tensor) -> Tensor:
            return alpha[bins_of(timesteps, len(alpha), self.timesteps)]

        return predict_modulated(self.denoiser, at, self.fixed, sample, timestep, states, more)


def predict_modulated(
    unet: nn.Module,
    coefficients: Callable[[Tensor], Tensor],
    weights: Mapping[str, Tensor],
    sample: Tensor,
    timestep: Any,
    states: Tensor,
    more: Mapping[str, Any],
) -> Tensor:
    """Return the unedited U-Net's prediction, modulated by a copy of its encoder with these weights."""
    with unedited(), modulating(unet, coefficients, weights):
        made: Tensor = unet(sample, timestep, encoder_hidden_states=states, return_dict=False, **more)[0]
    return made


def fit(pipe: Pipeline, concept: Concept, config: DuMoConfig | None = None) -> Eraser:
    """Train and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has no U-Net with skip connections, or as `tune` does.
    """
    config, empty = config or DuMoConfig(), encode_conditioning(pipe, "", "dumo")
    unet: Any = denoiser_of(pipe, "unet")[1]
    site = Site("unet", "", int(unet.config.out_channels))
    timesteps = int(as_diffusers(pipe).scheduler.config.num_train_timesteps)
    skips_of(unet)
    own_prompts, kept = prompts(concept, config.pairs)
    words, others = encode_each(pipe, own_prompts, "dumo"), encode_each(pipe, kept, "dumo")
    teacher = frozen_unet(pipe)
    copy = Copied(unet, weights(unet), {}, config.rank, torch.Generator().manual_seed(config.seed))

    def trained(student: Student, stage_config: DuMoConfig, stage: str) -> list[float]:
        def loss(generator: torch.Generator) -> Tensor:
            return objective(pipe, student, teacher, words, others, empty, generator, config)

        return tune(student, loss, stage_config, training_digest("dumo", pipe, concept, stage))

    losses, alpha = trained(copy, config.stage("copy"), "copy"), torch.ones(config.bins, skips_of(unet))
    if config.alpha_iterations:
        balanced = Balanced(copy, site, timesteps, config)
        alpha_config = config.stage("alpha", iterations=config.alpha_iterations, lr=config.alpha_lr)
        losses += trained(balanced, alpha_config, f"alpha after {losses[-1]}")
        alpha = balanced.alpha().detach().cpu()
    edits: list[ModulationEdit | CopyEdit] = [ModulationEdit(site, alpha, timesteps)]
    edits += [CopyEdit(layer, up=up, down=down) for layer, (up, down) in copy.saved_factors().items()]
    found = {"loss_first": losses[0], "loss_last": losses[-1], "alpha_mean": float(alpha.mean())}
    return build_eraser(pipe, edits, concept, "dumo", config.settings, found)


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
    """Return the loss at pictures of one concept prompt and of one other prompt, denoised up to a random step."""
    word = words[int(torch.randint(len(words), (1,), generator=generator))]
    other = others[int(torch.randint(len(others), (1,), generator=generator))]
    done = int(torch.randint(config.steps, (1,), generator=generator))
    erasing, _, _ = erasing_loss(pipe, student, teacher, student, word, empty, done, generator, config)
    if not config.keep:
        return erasing
    how: dict[str, Any] = {"count": config.batch, "steps": config.steps, "done": done, "guidance": config.guidance}
    latents, timestep = sample_partly(pipe, teacher, other, empty, generator, **how)
    given = latents, timestep, *other.of(config.batch)
    return erasing + config.keep * F.mse_loss(student(*given).float(), teacher(*given).float())


def prompts(concept: Concept, most: int) -> tuple[list[str], list[str]]:
    """Return the concept's prompts to train on, mentions included, and other prompts to keep, the empty one included.

    At most `most` pairs and `most` controls are used.
    """
    own = _spread([pair.concept for pair in concept.pairs], most)
    kept = [*_spread([pair.deconcept for pair in concept.pairs], most), *_spread(concept.controls, most)]
    return (
        list(dict.fromkeys([*concept.mentions, *own])),
        list(dict.fromkeys(["", *(text for text in kept if not mentioned(text, concept.mentions))])),
    )


def _spread(texts: Sequence[str], most: int) -> list[str]:
    """Return at most `most` evenly spaced texts."""
    count = min(most, len(texts))
    return [texts[n * len(texts) // count] for n in range(count)]


def weights(unet: nn.Module) -> dict[Site, nn.Parameter]:
    """Return the weights of the linear and convolutional layers in the U-Net's encoder."""
    return layer_weights(unet, lambda path: path.startswith(("conv_in", "down_blocks.")))


METHOD = Fitted("dumo", DuMoConfig, fit)
