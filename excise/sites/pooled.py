"""Pooled text states: the state at a prompt's end-of-text token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from excise.pipeline import Pipeline
from excise.sites.site import encoder_of, tokenizer_of


@torch.no_grad()
def eos_states(pipe: Pipeline, ids: Tensor) -> Tensor:
    """Return the EOS states `[n, d]`, in float32, of token rows `[n, T]`, after the last norm (the "pooled" output)."""
    encoder: Any = encoder_of(pipe, "text_encoder")
    states = encoder(ids.to(next(encoder.parameters()).device)).last_hidden_state
    eos: int = tokenizer_of(pipe, "text_encoder").eos_token_id
    # The first one, since PAD may be the same token.
    at = (ids == eos).int().argmax(1).to(states.device)
    made: Tensor = states[torch.arange(len(ids), device=states.device), at].float()
    return made


def eos_without_each(pipe: Pipeline, text: str) -> Tensor:
    """Return `[n, d]`: EOS states of a prompt of n words (tokens) with the i-th replaced by id 0, as in the authors'
    code."""
    tokenizer: Any = tokenizer_of(pipe, "text_encoder")
    ids = tokenizer(text, truncation=True, return_tensors="pt").input_ids
    count = ids.shape[1] - 2
    if count < 1:
        return torch.zeros(0, 1)
    each = ids.repeat(count, 1)
    each[torch.arange(count), torch.arange(count) + 1] = 0
    return eos_states(pipe, each)
