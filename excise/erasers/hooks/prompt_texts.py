"""The texts that text states were encoded from."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from excise.erasers.hooks.fingerprints import hashes
from excise.erasers.hooks.known_vectors import DTYPES

REMEMBERED = 1 << 16
"""Most text states whose prompts an eraser remembers: those of 20,000 prompts in three dtypes."""


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A prompt and its text states `[T, d]`."""

    text: str
    states: Tensor
    prompts: bool
    """Whether it is for the conditional branch of guidance."""


class PromptTexts:
    """The texts that text states were encoded from, by a hash of the states. All threads share it."""

    def __init__(self) -> None:
        self._texts: OrderedDict[int, tuple[tuple[str, bool], ...]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, texts: Sequence[str], states: Tensor, prompts: bool) -> None:
        """Remember the texts of `states` `[B, T, d]`. B may be a multiple of the number of texts."""
        times = max(1, len(states) // len(texts))
        for dtype in {states.dtype, *DTYPES}:
            for n, key in enumerate(_row_hashes(states.detach().to(dtype))):
                entry = texts[min(n // times, len(texts) - 1)], prompts
                with self._lock:
                    others = (other for other in self._texts.pop(key, ()) if other != entry)
                    self._texts[key] = (entry, *others)
        with self._lock:
            while len(self._texts) > REMEMBERED:
                self._texts.popitem(last=False)

    def find(self, states: Tensor) -> list[list[EncodedPrompt]]:
        """Return the prompts of each row of `states` `[B, T, d]`, the latest first; an unknown row has none."""
        keys = _row_hashes(states)
        with self._lock:
            texts = [self._texts.get(key, ()) for key in keys]
        return [
            [EncodedPrompt(text, row, prompts) for text, prompts in entries]
            for row, entries in zip(states.detach(), texts, strict=True)
        ]


def _row_hashes(states: Tensor) -> list[int]:
    """Return one hash for each row `[T, d]`."""
    made: list[int] = hashes(states.flatten(1)).tolist()
    return made
