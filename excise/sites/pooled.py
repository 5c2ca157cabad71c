"""Pooled text states: a prompt's state at its end-of-text token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from excise.pipeline import Pipeline
from excise.sites.site import encoder_of, tokenizer_of


@torch.no_grad()
def eos_states(pipe: Pipeline, ids: Tensor) -> Tensor:
    """`[n, d]` float32: EOS states of token rows `[n, T]`, after the last norm; the encoder's "pooled" output."""
    encoder: Any = encoder_of(pipe, "text_encoder")
    states = encoder(ids.to(next(encoder.parameters()).device)).last_hidden_state
    eos: int = tokenizer_of(pipe, "text_encoder").eos_token_id
    # The first one: where PAD is EOS too, the others follow it.
    at = (ids == eos).int().argmax(1).to(states.device)
    made: Tensor = states[torch.arange(len(ids), device=states.device), at].float()
    return made


def eos_without_each(pipe: Pipeline, text: str) -> Tensor:
    """`[n, d]`: of a prompt of n words (tokens) the EOS state without the i-th, which id 0 stands in for, as in the
    authors' code."""
    tokenizer: Any = tokenizer_of(pipe, "text_encoder")
    ids = tokenizer(text, truncation=True, return_tensors="pt").input_ids
    count = ids.shape[1] - 2
    if count < 1:
        return torch.zeros(0, 1)
    each = ids.repeat(count, 1)
    each[torch.arange(count), torch.arange(count) + 1] = 0
    return eos_states(pipe, each)
