"""HiRM: train the first layer of a text encoder to lead the last layer's representation of the concept astray (Lee et
al., Localized Concept Erasure in Text-to-Image Diffusion Models via High-Level Representation Misdirection, ICLR 2026).

    min over the weights of layer 0's self-attention and MLP of |o(c) - α u / |u||² / (T d)
o(c) `[T, d]` is the output of the last layer's self-attention (out_proj) for the concept's text, u is random, each
value uniform in [0, 1) and fixed by a seed (HiRM-R), or o of a super-category's text by the untouched encoder (HiRM-S).
|u| is the Frobenius norm. Nothing else is kept: there is no term for other prompts, and no picture is generated.

50 steps of AdamW with lr 1e-4, β = (0.9, 0.98), ε = 1e-6 and α = 5000 are the authors', as an independent
implementation states them (fmp453/erase-eval; no licence, not used). Differences: only weights are trained, no biases;
the decay of the weights, 1e-8 of lr a step, is left out, since it is below the rounding of a float32; a concept's
mentions take turns. That HiRM-S scales its u like HiRM-R is our reading.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.concepts import Concept
from excise.concepts.concept import check_apart
from excise.erasers import Eraser
from excise.erasers.hooks.context import unedited
from excise.errors import WrongModel
from excise.methods.base import Fitted
from excise.methods.configs.trained import HiRMConfig
from excise.methods.trained.trainer import Student, train_eraser
from excise.pipeline import Pipeline
from excise.sites import Site, text_encoders
from excise.sites.site import encoder_of, tokenizer_of

BETAS, EPS = (0.9, 0.98), 1e-6
"""Adam's β₁, β₂ and ε."""


def fit(pipe: Pipeline, concept: Concept, config: HiRMConfig | None = None) -> Eraser:
    """Train and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline's only text encoder is not a CLIP's, the super-category mentions the concept, or
    as `tune` does.
    """
    config = config or HiRMConfig()
    if config.category:
        check_apart([config.category], concept)
    task = Task(pipe, concept, config)
    return train_eraser(pipe, task.student, task.loss, concept, "hirm", config, betas=BETAS, eps=EPS)


class Task:
    """Training state and loss for one concept."""

    def __init__(self, pipe: Pipeline, concept: Concept, config: HiRMConfig) -> None:
        self.config = config
        self.encoder = _clip(pipe)
        self.student = Student(self.encoder, first_layer(self.encoder))
        self._last: nn.Module = _layers(self.encoder)[-1].self_attn.out_proj
        self._ids = _ids(pipe, concept.mentions).to(self.encoder.device)
        with torch.no_grad():
            if config.category:
                towards = self.outputs(_ids(pipe, [config.category]).to(self.encoder.device))[0]
            else:
                generator = torch.Generator().manual_seed(config.seed)
                towards = torch.rand(self.outputs(self._ids[:1])[0].shape, generator=generator)
        self.target: Tensor = (config.alpha * towards.float() / towards.float().norm()).to(self._ids.device)
        """`[T, d]`: where o is led."""

    def loss(self, generator: torch.Generator) -> Tensor:
        """Return the loss of one step: over some mentions, from a random one on."""
        start, count = (
            int(torch.randint(len(self._ids), (1,), generator=generator)),
            min(self.config.batch, len(self._ids)),
        )
        chosen = self._ids[[(start + n) % len(self._ids) for n in range(count)]]
        made = self.outputs(chosen).float()
        return F.mse_loss(made, self.target.expand_as(made))

    def outputs(self, ids: Tensor) -> Tensor:
        """Return o of token rows `[n, T]` by the student, `[n, T, d]`."""
        found: list[Tensor] = []
        handle = self._last.register_forward_hook(lambda module, args, output: found.append(output))
        try:
            with unedited():
                torch.func.functional_call(self.encoder, self.student.weights(), (ids,))
        finally:
            handle.remove()
        return found[0]


def first_layer(encoder: Any) -> dict[Site, Any]:
    """Return the weights of the linear layers in a CLIP text encoder's first layer, by Site."""
    first, paths = _layers(encoder)[0], {module: path for path, module in encoder.named_modules()}
    return {
        Site("text_encoder", paths[layer].removeprefix("text_model."), layer.out_features): layer.weight
        for layer in first.modules()
        if type(layer) is nn.Linear
    }


def _layers(encoder: Any) -> Any:
    inner = getattr(encoder, "text_model", encoder)
    return getattr(getattr(inner, "encoder", None), "layers", None)


def _clip(pipe: Pipeline) -> Any:
    """Return the pipeline's only text encoder. Raise WrongModel if it has several, or one of another kind."""
    encoder = encoder_of(pipe, "text_encoder") if len(text_encoders(pipe)) == 1 else None
    layers = _layers(encoder)
    if not layers or not hasattr(getattr(layers[-1], "self_attn", None), "out_proj"):
        raise WrongModel(
            f"hirm trains the only text encoder of a pipeline, a CLIP's, and {type(pipe).__name__} has others; choose "
            "another method, such as snce"
        )
    return encoder


def _ids(pipe: Pipeline, texts: Any) -> Tensor:
    tokenizer: Any = tokenizer_of(pipe, "text_encoder")
    length = tokenizer.model_max_length
    batch = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = batch.input_ids
    return ids


METHOD = Fitted("hirm", HiRMConfig, fit)
