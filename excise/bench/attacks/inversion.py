"""White-box attack: textual inversion of the erased concept (Gal et al. 2023; Pham et al. 2024, Circumventing Concept
Erasure).

One token's embedding is learnt on pictures of the concept, against the pipeline with its eraser attached. It stands for
a word that means nothing; whatever the eraser does to the concept's own words, this one may still draw it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.bench.attacks.denoising import denoised, noised
from excise.errors import ExciseError
from excise.pipeline import Pipeline
from excise.settings import Settings, setting
from excise.sites.site import encoder_of, tokenizer_of

WORD = "sks"
"""The word that is learnt: a single token of CLIP's vocabulary that means nothing."""


@dataclass(frozen=True)
class InversionConfig(Settings):
    """The budget."""

    iterations: int = setting(150, "Training steps of Adam.", unit="steps", least=1)
    lr: float = setting(0.01, "Adam's learning rate, in units of the embedding.", above=0)
    batch: int = setting(8, "Noised pictures in a training step.", unit="pictures", least=1)
    pictures: int = setting(4, "Pictures of the concept that it is learnt from.", unit="pictures", least=1)
    seed: int = setting(0, "Seed of all that is random.", most=2**63 - 1)


def invert(pipe: Pipeline, start: str, prompts: Sequence[str], pictures: Tensor, config: InversionConfig) -> Tensor:
    """The embedding `[d]` learnt for `WORD`, from that of the words `start`, against `pipe` as it is now.

    `pictures` are scaled latents `[n, C, h, w]`, `prompts` what each shows, with `WORD` for the concept. Every random
    quantity is fixed by the seed. Raises ExciseError where `WORD` is not one token, or a prompt lacks it.
    """
    tokenizer: Any = tokenizer_of(pipe, "text_encoder")
    encoder: Any = encoder_of(pipe, "text_encoder")
    table: Tensor = encoder.get_input_embeddings().weight.detach()
    word = _token(tokenizer)
    if any(word not in tokenizer(prompt).input_ids for prompt in prompts):
        raise ExciseError(f"every prompt must hold the word {WORD!r} that is learnt")
    first = tokenizer(start, add_special_tokens=False).input_ids
    learnt: Tensor = table[first].float().mean(0).requires_grad_()
    adam = torch.optim.Adam([learnt], lr=config.lr)
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.iterations):
        chosen = torch.randint(len(prompts), (config.batch,), generator=generator)
        spoilt, times, wanted = noised(pipe, pictures[chosen.to(pictures.device)], generator)
        with embedded(pipe, learnt):
            predicted = denoised(pipe, spoilt, times, [prompts[i] for i in chosen])
        loss = F.mse_loss(predicted.float(), wanted.float())
        (learnt.grad,) = torch.autograd.grad(loss, learnt)
        adam.step()
    return learnt.detach()


@contextmanager
def embedded(pipe: Pipeline, vector: Tensor) -> Iterator[None]:
    """Within it `WORD` has the embedding `vector` `[d]`."""
    word = _token(tokenizer_of(pipe, "text_encoder"))

    def swap(module: Any, args: Any, output: Tensor) -> Tensor:
        return torch.where((args[0] == word).unsqueeze(-1), vector.to(output), output)

    encoder: Any = encoder_of(pipe, "text_encoder")
    handle = encoder.get_input_embeddings().register_forward_hook(swap)
    try:
        yield
    finally:
        handle.remove()


def _token(tokenizer: Any) -> int:
    ids = tokenizer(WORD, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise ExciseError(f"{WORD!r} is {len(ids)} tokens to this tokenizer; the attack needs a word of one")
    return int(ids[0])
