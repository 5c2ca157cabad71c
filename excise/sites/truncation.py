"""Prompts longer than the text encoders read: which they are, and what of them never reaches the model."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from excise.pipeline import Pipeline, as_diffusers
from excise.sites.language import LanguageModel
from excise.sites.locking import own_copy
from excise.sites.site import encoder_of, text_encoders, tokenizer_of

_BATCH = 256
"""How many prompts are given to a tokenizer at once."""
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

    @property
    def lost_words(self) -> str:
        """The lost end, from the beginning of the word that it begins in."""
        at = len(self.prompt) - len(self.lost)
        begun = re.search(r"\w+\Z", self.prompt[:at]) if re.match(r"\w", self.lost) else None
        return self.prompt[begun.start() if begun else at :]


def cuts(pipe: Pipeline, prompts: Iterable[str]) -> list[Cut]:
    """Those of `prompts` that are longer than every text encoder of the pipeline reads, in their order.

    A language model cuts nothing: it refuses what is too long.
    """
    if isinstance(pipe, LanguageModel):
        return []
    limits = {name: _limit(pipe, name) for name in text_encoders(pipe)}
    if not limits or None in limits.values():
        return []
    readers = [(_own(tokenizer_of(pipe, name)), limit) for name, limit in limits.items() if limit is not None]
    rooms = [limit - tokenizer.num_special_tokens_to_add() for tokenizer, limit in readers]
    # No tokenizer makes more tokens than bytes: most prompts need not be asked about.
    long = [prompt for prompt in prompts if len(prompt.encode()) > max(rooms)]
    return [cut for start in range(0, len(long), _BATCH) for cut in _cuts(readers, long[start : start + _BATCH])]


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


def warn_of_cuts(pipe: Pipeline, prompts: list[str]) -> None:
    """Warn of prompts that are cut, once for each pipeline's tokenizer."""
    if isinstance(pipe, LanguageModel):
        return
    tokenizers = [tokenizer_of(pipe, name) for name in text_encoders(pipe)]
    if all(tokenizer in _warned for tokenizer in tokenizers):
        return
    if found := cuts(pipe, prompts):
        _warned.update(tokenizers)
        warnings.warn(f"{described(found, len(prompts))}; shorten such prompts (this is said once)", stacklevel=3)


def told_of_cuts(pipe: Pipeline) -> None:
    """Let no warning follow: the cuts of this pipeline's prompts were told of in another way."""
    if not isinstance(pipe, LanguageModel):
        _warned.update(tokenizer_of(pipe, name) for name in text_encoders(pipe))


def _cuts(readers: list[tuple[Any, int]], prompts: list[str]) -> list[Cut]:
    """Those of the prompts that every reader, a tokenizer with its limit, cuts."""
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
            # Without offsets the end is found by its own text.
            at = (
                int(read["offset_mapping"][row][room][0])
                if tokenizer.is_fast
                else max(0, len(prompts[n]) - len(tokenizer.decode(ids[room:])))
            )
            found[n] = max(best, (at, limit))
        ends = found
    return [Cut(prompts[n], prompts[n][at:], limit) for n, (at, limit) in ends.items()]


def _limit(pipe: Pipeline, component: str) -> int | None:
    """How many tokens the pipeline has an encoder read; None where that is not known."""
    tokenizer, encoder = tokenizer_of(pipe, component), encoder_of(pipe, component)
    if not callable(getattr(tokenizer, "num_special_tokens_to_add", None)):
        return None  # a processor of text and pictures
    positions = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
    longest = min(int(tokenizer.model_max_length), int(positions or tokenizer.model_max_length))
    if not type(encoder).__name__.startswith("CLIPText") and callable(getattr(pipe, "encode_prompt", None)):
        said = inspect.signature(as_diffusers(pipe).encode_prompt).parameters.get("max_sequence_length")
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
