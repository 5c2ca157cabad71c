"""White-box attack: textual inversion of the erased concept (Gal et al. 2023; Pham et al. 2024, Circumventing Concept
Erasure).

The embedding of one meaningless word is learnt from pictures of the concept, on the pipeline with its eraser attached.
The eraser acts on the concept's own words; this word may still generate the concept.
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
from excise.settings import LARGEST_FIRST_SEED, Settings, setting
from excise.sites.site import encoder_of, tokenizer_of

WORD = "sks"
"""Word whose embedding is learnt: a meaningless single token of CLIP's vocabulary."""


@dataclass(frozen=True)
class InversionConfig(Settings):
    """Budget of the attack."""

    iterations: int = setting(150, "Training steps of Adam.", unit="steps", least=1)
    lr: float = setting(0.01, "Adam's learning rate, in units of the embedding.", above=0)
    batch: int = setting(8, "Noised pictures per training step.", unit="pictures", least=1)
    pictures: int = setting(4, "Pictures of the concept to learn from.", unit="pictures", least=1)
    seed: int = setting(0, "Random seed.", most=LARGEST_FIRST_SEED)


def invert(pipe: Pipeline, start: str, prompts: Sequence[str], pictures: Tensor, config: InversionConfig) -> Tensor:
    """Learn an embedding for `WORD` on `pipe` as it is, with its erasers attached. Deterministic given the seed.

    Args:
        start: Words whose mean embedding is the starting point.
        prompts: Caption of each picture, with `WORD` for the concept.
        pictures: Scaled latents `[n, C, h, w]`.

    Returns:
        The embedding `[d]`.

    Raises ExciseError if `WORD` is not a single token, or a prompt lacks it.
    """
    tokenizer: Any = tokenizer_of(pipe, "text_encoder")
    encoder: Any = encoder_of(pipe, "text_encoder")
    table: Tensor = encoder.get_input_embeddings().weight.detach()
    word = _token(tokenizer)
    if any(word not in tokenizer(prompt).input_ids for prompt in prompts):
        raise ExciseError(f"every prompt must contain the word {WORD!r}, whose embedding is learnt")
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
    """Within this context, give `WORD` the embedding `vector` `[d]`."""
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
        raise ExciseError(f"this tokenizer splits {WORD!r} into {len(ids)} tokens; the attack needs a single token")
    return int(ids[0])
