"""Cross-attention helpers: record a U-Net's attention maps, and find which prompt tokens name the concept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.concepts import Concept
from excise.concepts.concept import all_mentioned
from excise.pipeline import Pipeline
from excise.sites.site import tokenizer_of


@contextmanager
def attention(unet: nn.Module) -> Iterator[list[Tensor]]:
    """Append the map of each cross-attention call, `[n, heads, pixels, tokens]` float32, to the yielded list."""
    maps: list[Tensor] = []

    def note(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Fused attention computes no maps. While a Student runs, to_k has the student's weights.
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


def attended(maps: Sequence[Tensor], words: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return how much each pixel attends to the tokens `words`, `[n, h, w]`, averaged over heads, layers and words.

    `maps` are what `attention` records, `size` is (h, w) of the latents. Coarse layers' maps are interpolated.
    """
    h, w = size
    own = [A[..., list(words)].mean((1, 3)).view(len(A), 1, *layer_size(h, w, A.shape[2])) for A in maps]
    return torch.stack([F.interpolate(A, (h, w), mode="bilinear") for A in own]).mean(0)[:, 0]


def stretched(maps: Tensor) -> Tensor:
    """Return maps `[n, h, w]`, each stretched to 0..1."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-12)


def layer_size(h: int, w: int, pixels: int) -> tuple[int, int]:
    """Return height and width of a layer with `pixels` pixels; each U-Net level halves both, rounding up."""
    while h * w > pixels:
        h, w = (h + 1) // 2, (w + 1) // 2
    return h, w


def shared_states(
    pipe: Pipeline, prompts: Mapping[str, str], states: Sequence[Tensor], others: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the states `[n, d]` of the tokens that each prompt shares with its counterpart, in both versions.

    Shared tokens are the common beginning and end. `states` and `others` hold the states `[T, d]` of all tokens.
    """
    tokenizer = tokenizer_of(pipe, "text_encoder")
    shared, others_shared = list[Tensor](), list[Tensor]()
    for texts, own, other in zip(prompts.items(), states, others, strict=True):
        a, b = (list(tokenizer(text, truncation=True).input_ids) for text in texts)
        first = _common_length(a, b)
        last = _common_length(a[first:][::-1], b[first:][::-1])
        # Padding follows the end token; keep as much of it as both prompts have.
        count = last + len(own) - max(len(a), len(b))
        shared += [own[:first], own[len(a) - last :][:count]]
        others_shared += [other[:first], other[len(b) - last :][:count]]
    return torch.cat(shared), torch.cat(others_shared)


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def concept_positions(pipe: Pipeline, prompt: str, concept: Concept) -> tuple[list[int], int]:
    """Return the positions of the tokens that name the concept, and the position of the end token."""
    tokenizer = tokenizer_of(pipe, "text_encoder")
    ids, found = list(tokenizer(prompt, truncation=True).input_ids), set[int]()
    for mention in all_mentioned(prompt, concept.mentions):
        own = list(tokenizer(mention, add_special_tokens=False).input_ids)
        starts = [n for n in range(len(ids)) if ids[n : n + len(own)] == own]
        found |= {n + k for n in starts for k in range(len(own))}
    return sorted(found), len(ids) - 1
