"""A U-Net's cross-attention: its key and value layers, and the text states that they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from excise.concepts import Concept
from excise.concepts.concept import check_apart, mentioned
from excise.erasers.hooks.context import unedited
from excise.errors import WrongModel
from excise.pipeline import Pipeline
from excise.sites import Site, encode_prompt
from excise.sites.encoding import tensors_of
from excise.sites.site import tokenizer_of

KEYS_AND_VALUES = (".attn2.to_k", ".attn2.to_v")


def keys_and_values(pipe: Pipeline, method: str) -> dict[Site, nn.Linear]:
    """Return the layers that turn text states into keys and values, by Site.

    Raises ExciseError if the pipeline has no U-Net with cross-attention.
    """
    unet = getattr(pipe, "unet", None)
    unet = getattr(unet, "_orig_mod", unet)
    modules = unet.named_modules() if isinstance(unet, nn.Module) else ()
    found = {
        Site("unet", path, layer.out_features): layer
        for path, module in modules
        if path.endswith(KEYS_AND_VALUES) and isinstance(layer := getattr(module, "base_layer", module), nn.Linear)
    }
    if not found:
        raise WrongModel(
            f"{method} changes a U-Net's cross-attention (attn2.to_k and to_v), and {type(pipe).__name__} has none; "
            "choose a method that edits the text encoder, such as snce"
        )
    return found


@torch.no_grad()
def word_states(pipe: Pipeline, texts: Sequence[str]) -> Tensor:
    """Return the state of each text's last token before EOS, as the denoiser reads it, `[n, d]` float32.

    For the empty text, this is BOS.
    """
    tokenizer: Any = tokenizer_of(pipe, "text_encoder")
    rows = []
    for text, states in zip(texts, text_states(pipe, texts), strict=True):
        ids = tokenizer(text, truncation=True).input_ids
        rows.append(states[max(0, len(ids) - 1 - (ids[-1] == tokenizer.eos_token_id))])
    return torch.stack(rows)


@torch.no_grad()
def text_states(pipe: Pipeline, texts: Sequence[str]) -> list[Tensor]:
    """Return the states of all tokens of each text, as the denoiser reads them, `[T, d]` float32."""
    with unedited():
        return [next(iter(tensors_of(encode_prompt(pipe, text))))[0].float().cpu() for text in texts]


def kept_words(concept: Concept, given: str = "", most: int = 100) -> list[str]:
    """Return the words to keep: those in `given`, separated by semicolons.

    If it is empty, they are what replaces the concept in its deconcept prompts, `most` at most. Raises ExciseError if a
    given word mentions the concept.
    """
    if given:
        words = [word.strip() for word in given.split(";") if word.strip()]
        check_apart(words, concept)
        return words
    instead = (" ".join(w for w in p.deconcept.split() if w not in p.concept.split()) for p in concept.pairs)
    return [text for text in dict.fromkeys(instead) if text and not mentioned(text, concept.mentions)][:most]
