"""Token ids of many prompts, to those that the pipeline makes, several times as fast.

A pipeline's own way costs most of the reading of a small encoder's states: diffusers splits each prompt once more to
look for textual inversions, and transformers converts every token's offsets and masks to Python objects.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from excise.errors import ExciseError
from excise.pipeline import Pipeline
from excise.sites.site import encoder_of, tokenizer_of

_FEWEST, _CHECKED = 64, 4
"""Prompts from which on the fast way pays, and how many of them are compared with the pipeline's way, every time."""
_COPIES: WeakKeyDictionary[Any, tuple[tuple[Any, ...], Any]] = WeakKeyDictionary()
"""A copy of each tokenizer's core that truncates and does not pad, and what it was made for."""


def tokenise(pipe: Pipeline, component: str, prompts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids, attention mask and scored mask, each `[B, T]`, padded and truncated as the pipeline does."""
    tokenizer, encoder = tokenizer_of(pipe, component), encoder_of(pipe, component)
    positions = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
    length = min(int(tokenizer.model_max_length), int(positions or tokenizer.model_max_length))
    if length > 100_000:
        raise ExciseError(f"{component}'s tokenizer has no maximal length; set tokenizer.model_max_length")
    texts = _converted(pipe, tokenizer, prompts)
    found = _fast(tokenizer, texts, length) if len(texts) >= _FEWEST else None
    ids, attention = _as_the_pipeline_does(tokenizer, texts, length) if found is None else found
    scored = attention.bool()
    if tokenizer.bos_token_id is not None:
        scored = scored & (ids != tokenizer.bos_token_id)
    return ids, attention, scored


def _converted(pipe: Pipeline, tokenizer: Any, prompts: list[str]) -> list[str]:
    """Return the prompts with the placeholder of a textual inversion written out as its several tokens.

    diffusers leaves all prompts as they are unless an added token `X` has a second part `X_1`.
    """
    convert = getattr(pipe, "maybe_convert_prompt", None)
    if convert is None:
        return prompts
    if getattr(convert, "__module__", "") == "diffusers.loaders.textual_inversion":
        added = tokenizer.added_tokens_encoder
        if not any(f"{token}_1" in added for token in added):
            return prompts
    texts: list[str] = convert(prompts, tokenizer)
    return texts


def _as_the_pipeline_does(tokenizer: Any, texts: list[str], length: int) -> tuple[Tensor, Tensor]:
    batch = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def _fast(tokenizer: Any, texts: list[str], length: int) -> tuple[Tensor, Tensor] | None:
    """Return token ids and attention mask `[B, length]`, or None if they would differ from the pipeline's.

    The core works on all texts at once, in as many threads as there are cores.
    """
    core = _copy(tokenizer, length)
    if core is None:
        return None
    encode = getattr(core, "encode_batch_fast", core.encode_batch)
    rows = [found.ids for found in encode(texts)]
    lengths = torch.tensor([len(row) for row in rows])
    attention = torch.arange(length) < lengths[:, None]
    ids = torch.full(attention.shape, tokenizer.pad_token_id)
    ids[attention] = torch.tensor(list(chain.from_iterable(rows)))
    # The longest texts are among those compared: they are the ones that are cut.
    few = lengths.argsort(descending=True)[:: -(-len(texts) // _CHECKED)]
    wanted = _as_the_pipeline_does(tokenizer, [texts[n] for n in few.tolist()], length)
    made = ids, attention.to(wanted[1].dtype)
    if all(torch.equal(own[few], known) for own, known in zip(made, wanted, strict=True)):
        return made
    _COPIES[tokenizer] = _key(tokenizer, length), None
    return None


def _key(tokenizer: Any, length: int) -> tuple[Any, ...]:
    return length, len(tokenizer), tokenizer.pad_token_id, tokenizer.padding_side, tokenizer.truncation_side


def _copy(tokenizer: Any, length: int) -> Any:
    """Return a copy of a tokenizer's core, or None if it has none or pads in another way."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None or tokenizer.pad_token_id is None:
        return None
    key = _key(tokenizer, length)
    if key[-2:] != ("right", "right"):
        return None
    known = _COPIES.get(tokenizer)
    if known is None or known[0] != key:
        own = None
        with suppress(Exception):  # an unknown kind of core: the pipeline's way works
            own = type(core).from_str(core.to_str())
            own.no_padding()
            own.enable_truncation(max_length=length)
        _COPIES[tokenizer] = known = (key, own)
    return known[1]
