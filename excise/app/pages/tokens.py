"""Prompts whose tokens are shaded by a neuron's code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Token:
    """A token with the neuron's code, its shade (0 if the neuron does not fire), and whether it starts a word."""

    text: str
    code: float
    share: float
    starts: bool


def shaded(tokens: Iterable[tuple[str, float]], most: float) -> list[Token]:
    """Return tokens with shades relative to the largest code `most`. Even a small code gets a visible shade."""
    return [
        Token(text.strip(), code, 0.15 + 0.7 * code / most if code > 0 and most else 0.0, text[:1].isspace())
        for text, code in tokens
    ]
