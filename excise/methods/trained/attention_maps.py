"""What methods share that look at a U-Net's cross-attention: its maps, and which of a prompt's tokens say what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from excise.concepts import Concept
from excise.concepts.concept import all_mentioned
from excise.pipeline import Pipeline
from excise.sites.site import tokenizer_of


@contextmanager
def attention(unet: nn.Module) -> Iterator[list[Tensor]]:
    """Within it each run of each cross-attention adds its maps, `[n, heads, pixels, tokens]` float32, to the list."""
    maps: list[Tensor] = []

    def note(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Layers compute fused, without maps. Within a Student's run to_k is the student's.
        q = layer.to_q(args[0]).unflatten(-1, (layer.heads, -1)).float()
        k = layer.to_k(kwargs["encoder_hidden_states"]).unflatten(-1, (layer.heads, -1)).float()
        maps.append((torch.einsum("bphd,bthd->bhpt", q, k) * layer.scale).softmax(-1))

    layers = [module for path, module in unet.named_modules() if path.endswith(".attn2")]
    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def of_layer(h: int, w: int, pixels: int) -> tuple[int, int]:
    """Height and width of a layer with so many pixels; each level of a U-Net halves them, rounding up."""
    while h * w > pixels:
        h, w = (h + 1) // 2, (w + 1) // 2
    return h, w


def beside(
    pipe: Pipeline, prompts: Mapping[str, str], states: Sequence[Tensor], others: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """`[n, d]` each: what prompts and their other ones begin and end with alike, of all their tokens' states
    `[T, d]`."""
    tokenizer = tokenizer_of(pipe, "text_encoder")
    here, there = list[Tensor](), list[Tensor]()
    for texts, own, other in zip(prompts.items(), states, others, strict=True):
        a, b = (list(tokenizer(text, truncation=True).input_ids) for text in texts)
        first = _alike(a, b)
        last = _alike(a[first:][::-1], b[first:][::-1])
        # Behind the end token there is padding: as much of it as both have.
        count = last + len(own) - max(len(a), len(b))
        here += [own[:first], own[len(a) - last :][:count]]
        there += [other[:first], other[len(b) - last :][:count]]
    return torch.cat(here), torch.cat(there)


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many of their first are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def spoken(pipe: Pipeline, prompt: str, concept: Concept) -> tuple[list[int], int]:
    """At which positions the prompt's tokens say the concept, and where its end token is."""
    tokenizer = tokenizer_of(pipe, "text_encoder")
    ids, found = list(tokenizer(prompt, truncation=True).input_ids), set[int]()
    for said in all_mentioned(prompt, concept.mentions):
        own = list(tokenizer(said, add_special_tokens=False).input_ids)
        starts = [n for n in range(len(ids)) if ids[n : n + len(own)] == own]
        found |= {n + k for n in starts for k in range(len(own))}
    return sorted(found), len(ids) - 1
