"""AdvUnlearn: train a text encoder against the prompts that would bring the concept back (Zhang et al., Defensive
Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion Models, NeurIPS 2024, section 4).

    min over θ of |ε(x_t, E_θ(c*)) - (ε(x_t) - η (ε(x_t, c) - ε(x_t)))|² + γ mean_r |ε(x_t, E_θ(r)) - ε(x_t, E(r))|²
    c* = argmin over c' of |ε(x_t, E_θ(c')) - ε(x_t, c)|²
E is the untouched encoder. c' is the concept's word after one token with a free embedding. r are prompts to preserve.
The U-Net is never changed. lr 1e-5, 1000 steps, η = 1, five preserved prompts, 30 steps of Adam at 1e-3 for c* and
guidance 3 are from the authors' code (OPTML-Group/AdvUnlearn, MIT). Differences here: one noised picture x_t serves the
whole step; every step starts the free token at a random vocabulary token; there is no warm-up; only the weights of the
encoder's linear layers are trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.concepts import Concept
from excise.concepts.concept import check_apart
from excise.erasers import Eraser
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError, WrongModel
from excise.methods.base import Fitted
from excise.methods.configs.trained import AdvUnlearnConfig
from excise.methods.trained.esd import esd_target
from excise.methods.trained.sampling import Conditioning, encode_conditioning, frozen_unet, sample_partly
from excise.methods.trained.trainer import Student, train_eraser
from excise.pipeline import Pipeline
from excise.sites import Site
from excise.sites.denoiser import denoiser_of, whole
from excise.sites.site import encoder_of, tokenizer_of


def fit(pipe: Pipeline, concept: Concept, config: AdvUnlearnConfig | None = None) -> Eraser:
    """Train and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has no U-Net that reads one text encoder, if the concept has no pairs or a
    deconcept prompt mentions it, or as `tune` does.
    """
    config = config or AdvUnlearnConfig()
    whole(pipe, "advunlearn")
    if not concept.pairs:
        raise ExciseError(f"concept {concept.name!r} has no prompt pairs; make some with `excise pairs make`")
    task = Task(pipe, concept, config)
    return train_eraser(pipe, task.student, task.loss, concept, "advunlearn", config)


class Task:
    """Training state and loss for one concept."""

    def __init__(self, pipe: Pipeline, concept: Concept, config: AdvUnlearnConfig) -> None:
        self.pipe, self.config = pipe, config
        self.encoder: Any = encoder_of(pipe, "text_encoder")
        self.student = Student(self.encoder, weights(self.encoder, config.layers))
        self._tokenizer: Any = tokenizer_of(pipe, "text_encoder")
        self.words = [
            (encode_conditioning(pipe, word, "advunlearn"), self._ids([word])[0]) for word in concept.mentions
        ]
        self.empty = encode_conditioning(pipe, "", "advunlearn")
        kept = list(dict.fromkeys(pair.deconcept for pair in concept.pairs))
        check_apart(kept, concept)
        self._kept = self._ids(kept)

    def _ids(self, texts: list[str]) -> Tensor:
        length = self._tokenizer.model_max_length
        batch = self._tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids: Tensor = batch.input_ids.to(self.encoder.device)
        return ids

    def loss(self, generator: torch.Generator) -> Tensor:
        """Return the loss of one step: attack first, then compare predictions for the attack and preserved prompts."""
        config = self.config
        word, ids = self.words[int(torch.randint(len(self.words), (1,), generator=generator))]
        done = int(torch.randint(config.steps, (1,), generator=generator))
        drawn = {"count": config.batch, "steps": config.steps, "done": done, "guidance": config.guidance}
        teacher = frozen_unet(self.pipe)
        sides = teacher, word, self.empty
        latents, timestep = sample_partly(self.pipe, *sides, generator, **drawn)  # type: ignore[arg-type]
        with_it, without = (teacher(latents, timestep, *side.of(config.batch)) for side in (word, self.empty))
        token = self._worst(latents, timestep, ids, with_it, word, generator)
        target = esd_target(with_it, without, config.eta)
        made = self._predicted(latents, timestep, self.states(ids[None], token), word)
        erasing = F.mse_loss(made.float(), target.float())
        chosen = torch.randperm(len(self._kept), generator=generator)[: config.retain]
        kept = self._kept[chosen.to(self._kept.device)]
        noisy = latents[:1].expand(len(kept), -1, -1, -1)
        with torch.no_grad(), unedited():
            before = self._predicted(noisy, timestep, self.encoder(kept).last_hidden_state, word)
        after = self._predicted(noisy, timestep, self.states(kept), word)
        return erasing + config.keep * F.mse_loss(after.float(), before.float())

    def _worst(
        self,
        latents: Tensor,
        timestep: Any,
        ids: Tensor,
        wanted: Tensor,
        word: Conditioning,
        generator: torch.Generator,
    ) -> Tensor | None:
        """Return the embedding `[d]` of c*'s first token, or None if no attack is configured."""
        if self.config.attack_steps == 0:
            return None
        table = self.encoder.get_input_embeddings().weight.detach()
        token: Tensor = table[int(torch.randint(len(table), (1,), generator=generator))].clone().float()
        token.requires_grad_()
        adam = torch.optim.Adam([token], lr=self.config.attack_lr)
        for _ in range(self.config.attack_steps):
            made = self._predicted(latents, timestep, self.states(ids[None], token), word)
            (token.grad,) = torch.autograd.grad(F.mse_loss(made.float(), wanted.float()), [token])
            adam.step()
        return token.detach()

    def states(self, ids: Tensor, token: Tensor | None = None) -> Tensor:
        """Encode token rows `[n, T]` with E_θ to `[n, T, d]`; `token`'s embedding is inserted right after BOS."""
        if token is None:
            return self._encoded(ids)
        pushed = torch.cat([ids[:, :1], ids[:, :-1]], 1)
        pushed[:, 1] = ids[:, 1]

        def put(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return torch.cat([output[:, :1], token.to(output).expand(len(output), 1, -1), output[:, 2:]], 1)

        handle = self.encoder.get_input_embeddings().register_forward_hook(put)
        try:
            return self._encoded(pushed)
        finally:
            handle.remove()

    def _encoded(self, ids: Tensor) -> Tensor:
        with unedited():
            made: Tensor = torch.func.functional_call(self.encoder, self.student.weights(), (ids,)).last_hidden_state
        return made

    def _predicted(self, latents: Tensor, timestep: Any, states: Tensor, like: Conditioning) -> Tensor:
        """Return the U-Net's prediction, differentiable with respect to `states`."""
        more: Mapping[str, Any] = like.of(len(latents))[1]
        given = states.expand(len(latents), -1, -1).to(latents.dtype)
        with unedited():
            unet = denoiser_of(self.pipe, "unet")[1]
            made: Tensor = unet(latents, timestep, encoder_hidden_states=given, return_dict=False, **more)[0]
        return made


def weights(encoder: nn.Module, layers: int) -> dict[Site, nn.Parameter]:
    """Return the weights of the linear layers in the first `layers` encoder layers; 0 means all layers."""
    found: dict[Site, Any] = {}
    for path, layer in encoder.named_modules():
        number = re.search(r"encoder\.layers\.(\d+)\.", path)
        if type(layer) is nn.Linear and number and (layers == 0 or int(number[1]) < layers):
            found[Site("text_encoder", path.removeprefix("text_model."), layer.out_features)] = layer.weight
    if not found:
        raise WrongModel(f"{type(encoder).__name__} has no encoder.layers; advunlearn trains a CLIP text encoder")
    return found


METHOD = Fitted("advunlearn", AdvUnlearnConfig, fit)
