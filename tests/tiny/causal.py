"""Causal language models of real classes with random weights, as pipelines."""

from __future__ import annotations

from typing import Any

from excise.sites import LanguageModel
from tests.tiny import encoders, words

KINDS = ("llama", "qwen2", "gemma2")


def causal(kind: str, layers: int = 4, width: int = 32, **options: Any) -> LanguageModel:
    """Return a new pipeline with the same weights every time. Qwen2's tokenizer has no BOS; the others use Gemma's,
    which has."""
    import transformers

    tokenizer = words.qwen() if kind == "qwen2" else words.gemma()
    name = kind.capitalize()
    shape: dict[str, Any] = encoders._decoder(width, len(tokenizer), layers, head_dim=kind != "qwen2")
    shape |= {"query_pre_attn_scalar": width // 2, "sliding_window": 8} if kind == "gemma2" else {}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = getattr(transformers, f"{name}Config")(**{**shape, **ends})
    model = encoders.telling(lambda: getattr(transformers, f"{name}ForCausalLM")(config))
    return LanguageModel(model, tokenizer, **options)
