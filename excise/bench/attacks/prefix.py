"""White-box attacks: a prefix of a few tokens, optimised on the pipeline with its eraser attached.

UnlearnDiffAtk (Zhang et al. 2024) searches for a prompt with which the erased model denoises a picture of the concept
as well as if nothing had been erased. P4D (Chin et al. 2024) searches for one with which it predicts what the unerased
model predicts for the plain prompt. Both searches follow Hard Prompts Made Easy (Wen et al. 2023): the loss is computed
at the nearest real tokens, and its gradient updates continuous embeddings.

An eraser with a gate is attacked through it too: `gradient` chooses the gradient of the gate's step
(`excise.erasers.gates`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.bench.attacks.denoising import denoised, noised
from excise.erasers.gates import Gradient, attacking
from excise.erasers.hooks.context import unedited
from excise.pipeline import Pipeline
from excise.settings import LARGEST_FIRST_SEED, Settings, setting
from excise.sites.site import encoder_of, tokenizer_of

Match = Literal["picture", "model"]
ADAPTIVE: tuple[Gradient, ...] = ("hinge", "straight-through", "soft")
"""Gradients of `adaptive_attack`."""


@dataclass(frozen=True)
class PrefixConfig(Settings):
    """Budget of the attack. The defaults are UnlearnDiffAtk's 5 tokens and 40 iterations."""

    match: Match = setting(
        "picture",
        "Target of the loss: the noise in a picture of the concept (picture, UnlearnDiffAtk), or the unerased model's "
        "prediction (model, P4D).",
    )
    gradient: Gradient = setting(
        "exact",
        "Gradient of the eraser's gates: their own (exact); their own, with a loss that closes them (hinge); that of "
        "open gates (straight-through); or that of a sigmoid (soft).",
    )
    weight: float = setting(1.0, "For gradient=hinge: weight of the loss that closes the gates.", above=0)
    slack: float = setting(
        0.1, "For gradient=hinge: how far below its bound a gate is pushed, as a share of the bound.", most=1
    )
    length: int = setting(5, "Tokens of the prefix.", unit="tokens", least=1)
    iterations: int = setting(40, "Training steps of Adam.", unit="steps", least=1)
    lr: float = setting(0.1, "Adam's learning rate, in units of the embedding.", above=0)
    batch: int = setting(
        8,
        "Noised pictures, at random timesteps, to compute the loss over: the same in every step.",
        unit="pictures",
        least=1,
    )
    seed: int = setting(0, "Random seed.", most=LARGEST_FIRST_SEED)


def prefix_attack(
    pipe: Pipeline, prompt: str, picture: Tensor, words: Tensor, config: PrefixConfig
) -> tuple[str, float]:
    """Return the prompt with the best prefix found, and its loss, on `pipe` as it is, with its erasers attached.

    `picture` holds scaled latents `[1, C, h, w]` of a picture of the concept, `words` the token ids that a prefix may
    use (`ring_a_bell.vocabulary`). Deterministic given the seed. The loss that is returned, and that the best prefix
    is chosen by, is the denoiser's alone. With gradient="hinge", the search adds, for each gate g that ran,
    weight * max(0, level_g / bound_g - 1 + slack).
    """
    tokenizer: Any = tokenizer_of(pipe, "text_encoder")
    encoder: Any = encoder_of(pipe, "text_encoder")
    embedding = encoder.get_input_embeddings()
    table = embedding.weight.detach()[words.to(embedding.weight.device)].float()
    generator = torch.Generator().manual_seed(config.seed)
    spoilt, times, wanted = _task(pipe, prompt, picture, config, generator)
    start = torch.randint(len(words), (config.length,), generator=generator)
    soft = table[start.to(table.device)].clone().requires_grad_()
    adam = torch.optim.Adam([soft], lr=config.lr)
    best, least = start, float("inf")
    for _ in range(config.iterations + 1):
        near = (F.normalize(soft.detach(), dim=1) @ F.normalize(table, dim=1).T).argmax(1)
        text = _with_prefix(tokenizer, words[near.cpu()], prompt)
        # Straight-through estimator: real tokens forward, the gradient goes to the continuous embeddings.
        with _embedded(embedding, table[near] + soft - soft.detach()), attacking(config.gradient) as gates:
            predicted = denoised(pipe, spoilt, times, text)
        loss = F.mse_loss(predicted.float(), wanted.float())
        if (value := float(loss.detach())) < least:
            best, least = near.cpu(), value
        if config.gradient == "hinge":
            for excess in gates.excess:
                loss = loss + config.weight * F.relu(excess.to(loss) + config.slack)
        adam.zero_grad()
        (soft.grad,) = torch.autograd.grad(loss, soft)
        adam.step()
    return _with_prefix(tokenizer, words[best], prompt), least


def adaptive_attack(
    pipe: Pipeline, prompt: str, picture: Tensor, words: Tensor, config: PrefixConfig
) -> tuple[str, float] | None:
    """Return the best of the searches with each replaced gradient, or None if no gate runs for this prompt.

    Takes and returns what `prefix_attack` does.
    """
    spoilt, times, _ = _task(pipe, prompt, picture, config, torch.Generator().manual_seed(config.seed))
    with attacking("exact") as gates:
        denoised(pipe, spoilt, times, prompt)
    if not gates.excess:
        return None
    found = [prefix_attack(pipe, prompt, picture, words, replace(config, gradient=each)) for each in ADAPTIVE]
    return min(found, key=lambda own: own[1])


@torch.no_grad()
def _task(
    pipe: Pipeline, prompt: str, picture: Tensor, config: PrefixConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return noised pictures `[n, C, h, w]`, their timesteps `[n]`, and the prediction to approach."""
    spoilt, times, wanted = noised(pipe, picture.expand(config.batch, -1, -1, -1), generator)
    if config.match == "model":
        with unedited():
            wanted = denoised(pipe, spoilt, times, prompt)
    return spoilt, times, wanted


def _with_prefix(tokenizer: Any, ids: Tensor, prompt: str) -> str:
    return f"{tokenizer.decode(ids)} {prompt}"


@contextmanager
def _embedded(embedding: Any, prefix: Tensor) -> Iterator[None]:
    """Within this context, embed the tokens after the first as `prefix` `[K, d]`."""

    def swap(module: Any, args: Any, output: Tensor) -> Tensor:
        head, rest = output[:, :1], output[:, 1 + len(prefix) :]
        return torch.cat([head, prefix.to(output.dtype).expand(len(output), -1, -1), rest], 1)

    handle = embedding.register_forward_hook(swap)
    try:
        yield
    finally:
        handle.remove()
