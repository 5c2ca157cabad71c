"""Prompts whose tokens are shaded by what a neuron answers to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Token:
    """A token, the neuron's code at it, how dark it is shaded (0 where the neuron is silent), whether a word starts."""

    text: str
    code: float
    share: float
    starts: bool


def shaded(tokens: Iterable[tuple[str, float]], most: float) -> list[Token]:
    """Tokens with their codes, `most` the largest of all that are compared: a faint code is still to be seen."""
    return [
        Token(text.strip(), code, 0.15 + 0.7 * code / most if code > 0 and most else 0.0, text[:1].isspace())
        for text, code in tokens
    ]
