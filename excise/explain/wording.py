"""Contexts as text for a language model, and the numbers in its answers."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

from excise.neurons.contexts import Context, is_special

OPEN, CLOSE = "<<", ">>"
"""Marks around highlighted tokens."""
SCALE = 10
"""Largest activation in questions and answers; the smallest is 0."""
END_NOTE = "⟨end⟩ stands for the end of a prompt, where the encoder gathers what the whole prompt says."
_LINE = re.compile(r"^\W*(\d+)\**(?:\s*[:=]\s*|[.)]\s+|\s+)\**(-?\d+(?:\.\d+)?)\**\s*$", re.MULTILINE)


def written(token: str) -> str:
    """Return a token as it is shown: on one line, and without anything that looks like a mark."""
    text = re.sub(r"\s", " ", token).replace(OPEN, "‹‹").replace(CLOSE, "››")
    return f" {text.strip()}" if text and is_special(token) else text


def marked(context: Context, positions: Collection[int]) -> str:
    """Return the prompt on one line, tokens at `positions` between << and >>, adjacent ones together: a <<red gun>>."""
    parts, inside = [], False
    for position, token in enumerate(context.tokens):
        text, wanted = written(token), position in positions
        if not text:
            continue
        if inside and not wanted:
            parts.append(CLOSE)
        if wanted and not inside:
            word = text.lstrip()
            text = f"{text[: len(text) - len(word)]}{OPEN}{word}"
        inside = wanted
        parts.append(text)
    return " ".join("".join([*parts, CLOSE] if inside else parts).split())


def active(context: Context, share: float) -> list[int]:
    """Return the positions at which the neuron fires with at least `share` of its largest code in this context."""
    return [t for t, code in enumerate(context.codes) if code > 0 and code >= share * context.peak]


def levels(codes: Sequence[float], top: float) -> list[int]:
    """Convert codes to whole numbers from 0 to 10; `top` becomes 10, and only 0 becomes 0."""
    return [min(SCALE, math.ceil(SCALE * code / top)) if code > 0 else 0 for code in codes]


def numbered_answers(text: str, n: int) -> list[float] | None:
    """Parse an answer of n lines such as `1: 0`; None unless each of 1 to n occurs once, with a value from 0 to 10."""
    found = [(int(line), float(value)) for line, value in _LINE.findall(text)]
    if sorted(line for line, _ in found) != list(range(1, n + 1)) or any(not 0 <= v <= SCALE for _, v in found):
        return None
    return [value for _, value in sorted(found)]


def listed_answers(text: str, n: int) -> list[bool] | None:
    """Parse the last list of zeros and ones in an answer, such as [1, 0]; None unless it has n of them."""
    lists = re.findall(r"\[([01](?:\s*,\s*[01])*)\s*,?\s*\]", text)
    answers = [number.strip() == "1" for number in lists[-1].split(",")] if lists else []
    return answers if len(answers) == n else None
