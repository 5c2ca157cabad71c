"""A corpus whose neurons are planted: each fires at one word, and at the end of the prompts that have it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

NOUNS = ("blade", "rose", "bus", "house", "frog", "star")
STYLES = ("red", "small", "old", "wooden", "tiny")
PLACES = ("on grass", "and a tree", "in the sky, at night", "near the sea, simple and clear")
PROMPTS = tuple(f"a {style} {noun} {place}" for noun, style, place in itertools.product(NOUNS, STYLES, PLACES))


@pytest.fixture(scope="session")
def planted_contexts(clip_tokenizer: Any) -> Callable[..., Any]:
    """Contexts of prompts as CLIP's real tokenizer cuts them, with a neuron for each word. `noise`: the share of other
    tokens at which each neuron fires too, `spread`: how far its codes are from 8."""
    from excise.neurons import PromptCodes
    from excise.neurons.contexts import Contexts
    from excise.sites.tokens import pieces

    def build(
        words: Sequence[str] = NOUNS,
        prompts: Sequence[str] = PROMPTS,
        noise: Sequence[float] = (0.0,) * 9,
        spread: float = 0.0,
        seed: int = 0,
    ) -> Contexts:
        batch = clip_tokenizer(list(prompts), padding=True, return_tensors="pt")
        tokens = [pieces(clip_tokenizer, row) for row in batch.input_ids.tolist()]
        scored = batch.attention_mask.bool() & (batch.input_ids != clip_tokenizer.bos_token_id)
        generator = torch.Generator().manual_seed(seed)
        strength = 8 + spread * torch.randn(*scored.shape, len(words), generator=generator)
        at = torch.tensor([[[token.strip() == word for word in words] for token in row] for row in tokens])
        at |= torch.rand(at.shape, generator=generator) < torch.tensor(noise[: len(words)])
        indices = torch.arange(len(words)).expand_as(at)
        return Contexts(PromptCodes(strength.clamp(min=1) * at, indices, scored, len(words)), tokens)

    return build
