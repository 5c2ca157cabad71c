"""Receler: train adapters after cross-attention that erase the concept where it is, also from prompts learnt to bring
it back (Huang et al., Receler: Reliable Concept Erasing of Text-to-Image Diffusion Models via Lightweight Erasers, ECCV
2024, section 3).

    o ← o + E(o),   E(o) = W_up gelu(W_down o + b_down) + b_up   after every cross-attention, W_up = b_up = 0 at first
    min over E of |ε_E(x_t, c*) - (ε(x_t) - η (ε(x_t, c) - ε(x_t)))|² + λ mean_l mean_p∉M |E_l(o_l)_p|² / d
    c* = argmin over c' of |ε_E(x_t, c') - ε(x_t, c)|²
ε is the untouched U-Net, x_t a picture of the concept c that the student denoised up to a random step (ESD's target,
SPM's pictures). c' are c's text states, with learnt ones in place of the 16 after the word, the end token among them. M
are the patches p of layer l that attend to the word: the untouched U-Net's attention at x_t, averaged over heads and
tokens, stretched to 0..1 and at least 0.1 (concept-localised regularisation).

Rank 128, 500 steps of Adam at 3e-4, η = 1, λ = 0.1, the threshold, guidance 3, 50 denoising steps, and for c' 50 steps
of Adam at 0.1 with weight decay 0.1 from uniform values in [0, 1) are from the authors' code (jasper0314-huang/Receler,
MIT), as is the mean in the second term, where the paper has a norm. Differences: every training step starts a new c',
where the authors go on with the last one, so that an interrupted training resumes to the same bits; the attention is
averaged over all layers, not those of 16 x 16 patches alone; a coarse layer's patch is in M if any pixel under it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.erasers.edits.adapters import AdapterEdit, added
from excise.erasers.edits.registry import Edit
from excise.errors import ExciseError
from excise.methods.base import Fitted
from excise.methods.configs.trained import RecelerConfig
from excise.methods.trained.attention_maps import attended, attention, concept_positions, layer_size, stretched
from excise.methods.trained.esd import esd_target
from excise.methods.trained.sampling import Conditioning, encode_conditioning, frozen_unet, sample_partly
from excise.methods.trained.trainer import Student, train_eraser
from excise.pipeline import Pipeline
from excise.sites import Site
from excise.sites.denoiser import attention_at, cross_attentions, denoiser_of

DECAY = 0.1
"""Weight decay of the Adam that learns c'."""


def fit(pipe: Pipeline, concept: Concept, config: RecelerConfig | None = None) -> Eraser:
    """Train and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has no U-Net with cross-attention, if the tokenizer cuts off a mention, or as
    `tune` does.
    """
    config = config or RecelerConfig()
    task = Task(pipe, concept, config)
    return train_eraser(pipe, task.student, task.loss, concept, "receler", config)


class Adapted(Student):
    """U-Net with a trained adapter after each of some attentions. The U-Net itself is not modified."""

    def __init__(
        self, denoiser: nn.Module, layers: Mapping[Site, nn.Module], rank: int, generator: torch.Generator
    ) -> None:
        super().__init__(denoiser, {})
        self.layers, self.rank = layers, rank
        device = next(denoiser.parameters()).device
        for site in layers:
            # W_down and b_down as a Linear has them at first, on top of zeros for W_up and b_up: a tensor per layer.
            down = (2 * torch.rand(rank, site.width + 1, generator=generator) - 1) / site.width**0.5
            packed = torch.cat([down, torch.zeros(rank + 1, site.width + 1)])
            self.changes[site] = packed.to(device).requires_grad_()

    def factors(self, site: Site) -> tuple[Tensor, Tensor]:
        """Return an adapter's `[r, d + 1]` and `[d, r + 1]`, as `added` takes them."""
        packed = self.changes[site]
        return packed[: self.rank], packed[self.rank :, :-1].T

    def __call__(self, sample: Tensor, timestep: Any, states: Tensor, more: Mapping[str, Any]) -> Tensor:
        with self.adapting():
            return super().__call__(sample, timestep, states, more)

    @contextmanager
    def adapting(self) -> Iterator[list[Tensor]]:
        """Run the adapters in this context, and append what each of them adds, `[B, N, d]` float32, to a list."""
        found: list[Tensor] = []

        def after(site: Site) -> Any:
            def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
                found.append(added(output.float(), *self.factors(site)))
                return (output.float() + found[-1]).to(output.dtype)

            return hook

        handles = [layer.register_forward_hook(after(site)) for site, layer in self.layers.items()]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def predict(
        self, sample: Tensor, timestep: Any, states: Tensor, more: Mapping[str, Any]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the prediction, and what each adapter added, in the order in which they ran."""
        with self.adapting() as found:
            return Student.__call__(self, sample, timestep, states, more), found

    def edits(self) -> list[Edit]:
        def saved(factor: Tensor) -> Tensor:
            return factor.detach().half().cpu().contiguous()

        return [AdapterEdit(site, *map(saved, self.factors(site))) for site in self.changes]


@dataclass(frozen=True, eq=False)
class Word:
    """A mention of the concept, encoded."""

    conditioning: Conditioning
    tokens: Sequence[int]
    """Positions of its tokens."""
    end: int
    """Position of the end token."""


class Task:
    """Training state and loss for one concept."""

    def __init__(self, pipe: Pipeline, concept: Concept, config: RecelerConfig) -> None:
        self.pipe, self.config = pipe, config
        self.empty = encode_conditioning(pipe, "", "receler")
        layers = {site: attention_at(pipe, site) for site in cross_attentions(pipe, "receler")}
        start = torch.Generator().manual_seed(config.seed)
        self.student = Adapted(denoiser_of(pipe, "unet")[1], layers, config.rank, start)
        self.words = [
            Word(encode_conditioning(pipe, text, "receler"), *concept_positions(pipe, text, concept))
            for text in concept.mentions
        ]
        for text, word in zip(concept.mentions, self.words, strict=True):
            if not word.tokens or word.end + 1 >= word.conditioning.states.shape[1]:
                raise ExciseError(f"the tokenizer leaves no room after {text!r} for a learnt prompt; shorten it")

    def loss(self, generator: torch.Generator) -> Tensor:
        """Return the loss of one step: learn c' first, then erase the concept from it."""
        with torch.compiler.set_stance("force_eager"):  # a compiled U-Net would leave out the hooks of the adapters
            return self._loss(generator)

    def _loss(self, generator: torch.Generator) -> Tensor:
        config = self.config
        word = self.words[int(torch.randint(len(self.words), (1,), generator=generator))]
        done = int(torch.randint(config.steps, (1,), generator=generator))
        drawn: dict[str, Any] = {"count": config.batch, "steps": config.steps, "done": done}
        side = word.conditioning
        latents, timestep = sample_partly(
            self.pipe, self.student, side, self.empty, generator, **drawn, guidance=config.guidance
        )
        teacher = frozen_unet(self.pipe)
        without = teacher(latents, timestep, *self.empty.of(config.batch))
        with attention(self.student.denoiser) as maps:
            with_it = teacher(latents, timestep, *side.of(config.batch))
        mask = stretched(attended(maps, word.tokens, latents.shape[-2:])).ge(config.threshold).float()
        states = self.worst(latents, timestep, word, with_it, generator)
        made, outputs = self.student.predict(latents, timestep, *self._given(states, side))
        target = esd_target(with_it, without, config.eta)
        return F.mse_loss(made.float(), target.float()) + config.keep * outside(outputs, mask)

    def worst(self, latents: Tensor, timestep: Any, word: Word, wanted: Tensor, generator: torch.Generator) -> Tensor:
        """Return the states `[T, d]` of c*, or the word's own if no attack is configured."""
        config, own = self.config, word.conditioning.states[0]
        if config.attack_steps == 0:
            return own
        count = min(config.attack_tokens, len(own) - word.end)
        learnt = torch.rand(count, own.shape[1], generator=generator).to(own.device).requires_grad_()
        adam = torch.optim.Adam([learnt], lr=config.attack_lr, weight_decay=DECAY)

        def states() -> Tensor:
            return torch.cat([own[: word.end], learnt.to(own), own[word.end + count :]])

        for _ in range(config.attack_steps):
            made = self.student(latents, timestep, *self._given(states(), word.conditioning))
            (learnt.grad,) = torch.autograd.grad(F.mse_loss(made.float(), wanted.float()), [learnt])
            adam.step()
        return states().detach()

    def _given(self, states: Tensor, like: Conditioning) -> tuple[Tensor, Mapping[str, Any]]:
        return states[None].expand(self.config.batch, -1, -1), like.of(self.config.batch)[1]


def outside(outputs: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Return the mean square of what adapters add outside of the mask, averaged over layers; 0 where all is inside.

    Args:
        outputs: What each layer's adapter adds, `[n, patches, d]`.
        mask: M, `[n, h, w]`: 1 where the picture attends to the word, else 0.
    """
    total, (h, w) = torch.zeros((), device=mask.device), mask.shape[1:]
    for output in outputs:
        size = layer_size(h, w, output.shape[1])
        # A patch of a coarse layer is inside if any pixel that it covers is.
        rest = 1 - F.adaptive_max_pool2d(mask[:, None], size).flatten(1)
        total = total + (output.square().mean(-1) * rest).sum() / rest.sum().clamp(min=1)
    return total / len(outputs)


METHOD = Fitted("receler", RecelerConfig, fit)
