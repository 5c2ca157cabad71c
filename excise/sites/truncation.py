"""Prompts longer than the text encoders read: which they are, and what of them never reaches the model."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from excise.sites.language import LanguageModel
from excise.sites.locking import own_copy
from excise.sites.site import encoder_of, text_encoders, tokenizer_of

_NO_LIMIT = 100_000
"""Tokenizers without a maximal length claim an astronomical one."""
_warned: WeakSet[Any] = WeakSet()
"""Tokenizers whose cuts were told of already."""

_copies: WeakKeyDictionary[Any, tuple[int, Any]] = WeakKeyDictionary()
"""Copies of tokenizers, with the size of the vocabulary they were made of: copying one takes a tenth of a second."""


@dataclass(frozen=True)
class Cut:
    """A prompt that is cut: the end that no text encoder reads, and how many tokens the one that reads most takes."""

    prompt: str
    lost: str
    limit: int

    def holds(self, words: Iterable[str]) -> bool:
        """Whether one of these words stands in the part that is lost."""
        return any(word.lower() in self.lost.lower() for word in words if word.strip())


def cuts(pipe: Any, prompts: Iterable[str]) -> list[Cut]:
    """Those of `prompts` that are longer than every text encoder of the pipeline reads, in their order.

    A language model cuts nothing: it refuses what is too long.
    """
    if isinstance(pipe, LanguageModel):
        return []
    limits = {name: _limit(pipe, name) for name in text_encoders(pipe)}
    if not limits or None in limits.values():
        return []
    readers = [(_own(tokenizer_of(pipe, name)), limit) for name, limit in limits.items()]
    found = (_cut(readers, prompt) for prompt in prompts)
    return [cut for cut in found if cut is not None]


def described(found: list[Cut], of: int) -> str:
    """How many prompts are cut and what is lost, in one line."""
    first = " ".join(found[0].lost.split())
    shown = first if len(first) <= 60 else first[:59] + "…"
    how = "prompt is" if of == 1 else "prompts are"
    return (
        f"{len(found)} of {of} {how} longer than the {found[0].limit} tokens that the model reads; "
        f"the rest never reaches it: “{shown}” is lost{' in the first' if len(found) > 1 else ''}"
    )


def label(prompt: str, lost: str = "") -> str:
    """The prompt as a picture's label gives it: `lost`, the end that the model does not read, stands in brackets."""
    return f"{prompt.removesuffix(lost).rstrip()} (not read: {lost.strip()})" if lost else prompt


def warn_of_cuts(pipe: Any, prompts: list[str]) -> None:
    """Warn of prompts that are cut, once for each pipeline's tokenizer."""
    if isinstance(pipe, LanguageModel):
        return
    tokenizers = [tokenizer_of(pipe, name) for name in text_encoders(pipe)]
    if all(tokenizer in _warned for tokenizer in tokenizers):
        return
    if found := cuts(pipe, prompts):
        _warned.update(tokenizers)
        warnings.warn(f"{described(found, len(prompts))}; shorten such prompts (this is said once)", stacklevel=3)


def told_of_cuts(pipe: Any) -> None:
    """Let no warning follow: the cuts of this pipeline's prompts were told of in another way."""
    if not isinstance(pipe, LanguageModel):
        _warned.update(tokenizer_of(pipe, name) for name in text_encoders(pipe))


def _cut(readers: list[tuple[Any, int | None]], prompt: str) -> Cut | None:
    best: tuple[int, int] | None = None
    for tokenizer, limit in readers:
        assert limit is not None
        special = tokenizer.num_special_tokens_to_add()
        if len(prompt.encode()) + special <= limit:
            return None  # no tokenizer makes more tokens than bytes
        read = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
        ids, room = read["input_ids"], limit - special
        if len(ids) <= room:
            return None
        # Without offsets the end is found by its own text.
        at = (
            int(read["offset_mapping"][room][0])
            if tokenizer.is_fast
            else max(0, len(prompt) - len(tokenizer.decode(ids[room:])))
        )
        best = max(best or (0, 0), (at, limit))
    return Cut(prompt, prompt[best[0] :], best[1]) if best is not None else None


def _limit(pipe: Any, component: str) -> int | None:
    """How many tokens the pipeline has an encoder read; None where that is not known."""
    tokenizer, encoder = tokenizer_of(pipe, component), encoder_of(pipe, component)
    if not callable(getattr(tokenizer, "num_special_tokens_to_add", None)):
        return None  # a processor of text and pictures
    positions = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
    longest = min(int(tokenizer.model_max_length), int(positions or tokenizer.model_max_length))
    if not type(encoder).__name__.startswith("CLIPText") and callable(getattr(pipe, "encode_prompt", None)):
        said = inspect.signature(pipe.encode_prompt).parameters.get("max_sequence_length")
        if said is not None and isinstance(said.default, int):
            longest = min(longest, said.default)
    return longest if longest < _NO_LIMIT else None


def _own(tokenizer: Any) -> Any:
    """A copy: a call leaves its padding and truncation in a fast tokenizer, which others may be encoding with."""
    if getattr(tokenizer, "_tokenizer", None) is None:
        return tokenizer
    size, own = _copies.get(tokenizer, (0, None))
    if own is None or size != len(tokenizer):
        own = own_copy(tokenizer)
        # So that no call changes it from here on: threads may share it without a lock.
        own._tokenizer.no_truncation()
        own._tokenizer.no_padding()
        _copies[tokenizer] = len(tokenizer), own
    return own
