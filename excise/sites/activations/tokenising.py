"""Token ids of many prompts, to those that the pipeline makes, several times as fast.

A pipeline's own way costs most of the reading of a small encoder's states: diffusers splits each prompt once more to
look for textual inversions, and transformers converts every token's offsets and masks to Python objects. CLIP's
tokenizer never joins across a space, so the tokens of a prompt in ASCII are those of its words, one after another, and
most words were seen before.
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
_MOST_WORDS = 1 << 18
"""Words whose tokens are kept."""


class _Copy:
    """A tokenizer's core that truncates and does not pad, and the tokens of words that it has split."""

    def __init__(self, tokenizer: Any, core: Any, length: int) -> None:
        self.core = type(core).from_str(core.to_str())
        self.core.no_padding()
        self.core.enable_truncation(max_length=length)
        self._encode = getattr(self.core, "encode_batch_fast", self.core.encode_batch)
        self._room = length - 2
        self._ends = list(self.core.encode("").ids)
        self._words: dict[str, list[int]] = {}
        clip = type(tokenizer).__name__.startswith("CLIPTokenizer") and len(self._ends) == 2
        # An added token with a space in it would be looked for across words.
        self._by_word = clip and not any(len(token.split()) != 1 for token in tokenizer.added_tokens_encoder)

    def rows(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text, not padded. The core works in as many threads as there are cores."""
        if not self._by_word:
            return [found.ids for found in self._encode(texts)]
        split = [text.split() if text.isascii() and text.isprintable() else None for text in texts]
        if len(self._words) > _MOST_WORDS:
            self._words.clear()
        new = list({word for words in split if words is not None for word in words} - self._words.keys())
        found = self._encode(new, add_special_tokens=False) if new else []
        self._words.update(zip(new, (one.ids for one in found), strict=True))
        others = [text for text, words in zip(texts, split, strict=True) if words is None]
        whole = iter(self._encode(others) if others else [])
        first, last = self._ends
        made = []
        for words in split:
            if words is None:
                made.append(list(next(whole).ids))
            else:
                inner = list(chain.from_iterable(map(self._words.__getitem__, words)))
                made.append([first, *inner[: self._room], last])
        return made


_COPIES: WeakKeyDictionary[Any, tuple[tuple[Any, ...], _Copy | None]] = WeakKeyDictionary()
"""Each tokenizer's copy, None if it does not do the same, and what it was made for."""


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
    """Return token ids and attention mask `[B, length]`, or None if they would differ from the pipeline's."""
    copy = _copy(tokenizer, length)
    if copy is None:
        return None
    rows = copy.rows(texts)
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


def _copy(tokenizer: Any, length: int) -> _Copy | None:
    """Return a tokenizer's copy, or None if it has no core or pads in another way."""
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
            own = _Copy(tokenizer, core, length)
        _COPIES[tokenizer] = known = (key, own)
    return known[1]
