"""AdvUnlearn: a text encoder that is trained against the prompts which would bring the concept back (Zhang et al.,
Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion Models, NeurIPS 2024, section 4).

    min over θ of |ε(x_t, E_θ(c*)) - (ε(x_t) - η (ε(x_t, c) - ε(x_t)))|² + γ mean_r |ε(x_t, E_θ(r)) - ε(x_t, E(r))|²
    c* = min over c' of |ε(x_t, E_θ(c')) - ε(x_t, c)|²
E is the untouched encoder, c' the concept's word with one token before it whose embedding is anything, r prompts that
have to stay; the U-Net is never changed. lr 1e-5, 1000 steps, η = 1, five kept prompts, 30 steps of Adam at 1e-3 for c*
and guidance 3 are those of the authors' code (OPTML-Group/AdvUnlearn, MIT). Otherwise here: one picture x_t serves all
that happens in a step; the token begins anew in every step, as one of the vocabulary's; nothing is warmed up; and of
the encoder the weights of linear layers are trained.
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
from excise.methods.build import proved
from excise.methods.configs.trained import AdvUnlearnConfig
from excise.methods.trained.sampling import Conditioning, encode_conditioning, frozen_unet, sample_partly
from excise.methods.trained.trainer import Student, training, tune
from excise.pipeline import Pipeline
from excise.sites import Site
from excise.sites.denoiser import denoiser_of, whole
from excise.sites.site import encoder_of, tokenizer_of


def fit(pipe: Pipeline, concept: Concept, config: AdvUnlearnConfig | None = None) -> Eraser:
    """The eraser of `concept` for `pipe`, trained and proved.

    Raises ExciseError where the pipeline has no U-Net that reads one text encoder, the concept no pairs or one whose
    other side says it, or as `tune` does.
    """
    config = config or AdvUnlearnConfig()
    whole(pipe, "advunlearn")
    if not concept.pairs:
        raise ExciseError(f"concept {concept.name!r} has no prompt pairs; make some with `excise pairs make`")
    task = Task(pipe, concept, config)
    losses = tune(task.student, task.loss, config, training("advunlearn", pipe, concept))
    found = {"loss_first": losses[0], "loss_last": losses[-1]}
    return proved(pipe, task.student.edits(), concept, "advunlearn", config.settings, found)


class Task:
    """The training of one concept's eraser."""

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
        """Of one step: the attack, then what the encoder makes of it and of prompts that have to stay."""
        config = self.config
        word, ids = self.words[int(torch.randint(len(self.words), (1,), generator=generator))]
        done = int(torch.randint(config.steps, (1,), generator=generator))
        drawn = {"count": config.batch, "steps": config.steps, "done": done, "guidance": config.guidance}
        teacher = frozen_unet(self.pipe)
        sides = teacher, word, self.empty
        latents, timestep = sample_partly(self.pipe, *sides, generator, **drawn)  # type: ignore[arg-type]
        with_it, without = (teacher(latents, timestep, *side.of(config.batch)) for side in (word, self.empty))
        token = self._worst(latents, timestep, ids, with_it, word, generator)
        aim = without - config.eta * (with_it - without)
        made = self._predicted(latents, timestep, self.states(ids[None], token), word)
        erasing = F.mse_loss(made.float(), aim.float())
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
        """`[d]`: the embedding of c*'s first token; None where nothing is sought."""
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
        """E_θ of token rows `[n, T]`, `[n, T, d]`; with `token`, its embedding stands behind BOS, before the others."""
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
        """The U-Net's, with gradients to the states."""
        more: Mapping[str, Any] = like.of(len(latents))[1]
        given = states.expand(len(latents), -1, -1).to(latents.dtype)
        with unedited():
            unet = denoiser_of(self.pipe, "unet")[1]
            made: Tensor = unet(latents, timestep, encoder_hidden_states=given, return_dict=False, **more)[0]
        return made


def weights(encoder: nn.Module, layers: int) -> dict[Site, nn.Parameter]:
    """Of the linear layers within the first so many layers of a text encoder, or within all of them."""
    found: dict[Site, Any] = {}
    for path, layer in encoder.named_modules():
        number = re.search(r"encoder\.layers\.(\d+)\.", path)
        if type(layer) is nn.Linear and number and (layers == 0 or int(number[1]) < layers):
            found[Site("text_encoder", path.removeprefix("text_model."), layer.out_features)] = layer.weight
    if not found:
        raise WrongModel(f"{type(encoder).__name__} has no encoder.layers; advunlearn trains a CLIP text encoder")
    return found


METHOD = Fitted("advunlearn", AdvUnlearnConfig, fit)
