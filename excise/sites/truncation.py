"""Prompts that the text encoders truncate, and the part of each that is lost."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from excise.pipeline import Pipeline
from excise.sites.encoding import call_defaults
from excise.sites.language import LanguageModel
from excise.sites.locking import own_copy
from excise.sites.site import encoder_of, text_encoders, tokenizer_of

_BATCH = 256
"""Number of prompts per tokenizer call."""
_NO_LIMIT = 100_000
"""Tokenizers without a maximal length have an astronomical one."""
_warned: WeakSet[Any] = WeakSet()
"""Tokenizers whose truncation was reported already."""

_copies: WeakKeyDictionary[Any, tuple[int, Any]] = WeakKeyDictionary()
"""Copies of tokenizers, with the vocabulary size at that time. Copying one takes a tenth of a second."""


@dataclass(frozen=True)
class Cut:
    """A truncated prompt: its end, which no text encoder reads, and the highest token limit of the encoders."""

    prompt: str
    lost: str
    limit: int

    @property
    def lost_words(self) -> str:
        """The lost end, starting with the whole word that it begins in."""
        at = len(self.prompt) - len(self.lost)
        begun = re.search(r"\w+\Z", self.prompt[:at]) if re.match(r"\w", self.lost) else None
        return self.prompt[begun.start() if begun else at :]


def cuts(pipe: Pipeline, prompts: Iterable[str]) -> list[Cut]:
    """Return those of `prompts` that every text encoder of the pipeline truncates, in order.

    A language model refuses prompts that are too long instead.
    """
    if isinstance(pipe, LanguageModel):
        return []
    limits = {name: _limit(pipe, name) for name in text_encoders(pipe)}
    if not limits or None in limits.values():
        return []
    readers = [(_copy_of(tokenizer_of(pipe, name)), limit) for name, limit in limits.items() if limit is not None]
    rooms = [limit - tokenizer.num_special_tokens_to_add() for tokenizer, limit in readers]
    # A prompt never has more tokens than bytes, so most need not be tokenised.
    long = [prompt for prompt in prompts if len(prompt.encode()) > max(rooms)]
    return [cut for start in range(0, len(long), _BATCH) for cut in _cuts(readers, long[start : start + _BATCH])]


def described(found: list[Cut], of: int) -> str:
    """Describe in one line how many prompts are truncated and what is lost."""
    first = " ".join(found[0].lost.split())
    shown = first if len(first) <= 60 else first[:59] + "…"
    how = "prompt is" if of == 1 else "prompts are"
    return (
        f"{len(found)} of {of} {how} longer than the {found[0].limit} tokens that the model reads; "
        f"the rest never reaches it: “{shown}” is lost{' in the first' if len(found) > 1 else ''}"
    )


def label(prompt: str, lost: str = "") -> str:
    """Return the prompt as an image's label, with `lost`, the end that the model does not read, in brackets."""
    return f"{prompt.removesuffix(lost).rstrip()} (not read: {lost.strip()})" if lost else prompt


def warn_of_cuts(pipe: Pipeline, prompts: list[str]) -> None:
    """Warn of truncated prompts, once for each tokenizer."""
    if isinstance(pipe, LanguageModel):
        return
    tokenizers = [tokenizer_of(pipe, name) for name in text_encoders(pipe)]
    if all(tokenizer in _warned for tokenizer in tokenizers):
        return
    if found := cuts(pipe, prompts):
        _warned.update(tokenizers)
        warnings.warn(f"{described(found, len(prompts))}; shorten such prompts (shown once)", stacklevel=3)


def suppress_cut_warnings(pipe: Pipeline) -> None:
    """Suppress further warnings for this pipeline, whose truncated prompts are reported in another way."""
    if not isinstance(pipe, LanguageModel):
        _warned.update(tokenizer_of(pipe, name) for name in text_encoders(pipe))


def _cuts(readers: list[tuple[Any, int]], prompts: list[str]) -> list[Cut]:
    """Return the prompts that every reader (a tokenizer with its limit) truncates."""
    ends = dict.fromkeys(range(len(prompts)), (0, 0))
    for tokenizer, limit in readers:
        if not ends:
            break
        texts, room = [prompts[n] for n in ends], limit - tokenizer.num_special_tokens_to_add()
        read = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
        found = {}
        for row, (n, best) in enumerate(ends.items()):
            ids = read["input_ids"][row]
            if len(ids) <= room:
                continue
            # Without offsets, the length of the lost end's text gives its start.
            at = (
                int(read["offset_mapping"][row][room][0])
                if tokenizer.is_fast
                else max(0, len(prompts[n]) - len(tokenizer.decode(ids[room:])))
            )
            found[n] = max(best, (at, limit))
        ends = found
    return [Cut(prompts[n], prompts[n][at:], limit) for n, (at, limit) in ends.items()]


def _limit(pipe: Pipeline, component: str) -> int | None:
    """Return how many tokens of a prompt the pipeline passes to an encoder, or None if unknown."""
    tokenizer, encoder = tokenizer_of(pipe, component), encoder_of(pipe, component)
    if not callable(getattr(tokenizer, "num_special_tokens_to_add", None)):
        return None  # a processor of text and images
    positions = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
    longest = min(int(tokenizer.model_max_length), int(positions or tokenizer.model_max_length))
    if not type(encoder).__name__.startswith("CLIPText") and callable(getattr(pipe, "encode_prompt", None)):
        longest = min(longest, call_defaults(pipe).get("max_sequence_length") or longest)
    return longest if longest < _NO_LIMIT else None


def _copy_of(tokenizer: Any) -> Any:
    """Return a cached copy. A call changes a fast tokenizer's padding and truncation, while others may be using it."""
    if getattr(tokenizer, "_tokenizer", None) is None:
        return tokenizer
    size, copied = _copies.get(tokenizer, (0, None))
    if copied is None or size != len(tokenizer):
        copied = own_copy(tokenizer)
        # With these settings no later call changes it, so that threads may share it without a lock.
        copied._tokenizer.no_truncation()
        copied._tokenizer.no_padding()
        _copies[tokenizer] = len(tokenizer), copied
    return copied
