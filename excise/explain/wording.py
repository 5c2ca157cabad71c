"""Contexts as text for a language model to read, and the numbers in its answers."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

from excise.neurons.contexts import Context, is_special

OPEN, CLOSE = "<<", ">>"
"""What is set around tokens that are pointed at."""
SCALE = 10
"""Activations are told from 0 to this."""
END_NOTE = "⟨end⟩ stands for the end of a prompt, where the encoder gathers what the whole prompt says."
_LINE = re.compile(r"^\W*(\d+)\**(?:\s*[:=]\s*|[.)]\s+|\s+)\**(-?\d+(?:\.\d+)?)\**\s*$", re.MULTILINE)


def written(token: str) -> str:
    """A token as it is shown: on one line, and never to be taken for a mark."""
    text = re.sub(r"\s", " ", token).replace(OPEN, "‹‹").replace(CLOSE, "››")
    return f" {text.strip()}" if text and is_special(token) else text


def marked(context: Context, positions: Collection[int]) -> str:
    """The prompt on one line with the tokens at `positions` between << and >>, neighbours together: a <<red gun>>."""
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
    """Positions at which the neuron fires with at least `share` of its largest code in this context."""
    return [t for t, code in enumerate(context.codes) if code > 0 and code >= share * context.peak]


def levels(codes: Sequence[float], top: float) -> list[int]:
    """Codes as whole numbers from 0 to 10, `top` being 10 and 0 alone being 0."""
    return [min(SCALE, math.ceil(SCALE * code / top)) if code > 0 else 0 for code in codes]


def numbered_answers(text: str, n: int) -> list[float] | None:
    """The numbers of an answer of n lines `1: 0`, in order; None unless each of 1 to n is there once, from 0 to 10."""
    found = [(int(line), float(value)) for line, value in _LINE.findall(text)]
    if sorted(line for line, _ in found) != list(range(1, n + 1)) or any(not 0 <= v <= SCALE for _, v in found):
        return None
    return [value for _, value in sorted(found)]


def listed_answers(text: str, n: int) -> list[bool] | None:
    """The last list of zeros and ones in an answer, such as [1, 0]; None unless it has n of them."""
    lists = re.findall(r"\[([01](?:\s*,\s*[01])*)\s*,?\s*\]", text)
    answers = [number.strip() == "1" for number in lists[-1].split(",")] if lists else []
    return answers if len(answers) == n else None
