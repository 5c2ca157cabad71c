"""The verdict in an eraser's json: the results of its test, and their wording."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from excise.statistics import wilson

KEYS: dict[str, type] = {
    "mentions": list,
    "carried": float,
    "auroc": float,
    "opened": float,
    "pairs": int,
    "controls": dict,
    "benign": dict,
    "protected": dict,
    "weak": list,
}
"""Every key that a verdict may have, and its type. Missing keys were not measured."""
_MENTION: dict[str, type] = {
    "word": str,
    "caught": bool,
    "sentences": int,
    "changed": int,
    "relative": float,
    "moved": float,
}
_TOUCHED: dict[str, type] = {"touched": int, "of": int}
_PROTECTED: dict[str, type] = {"touched": list, "of": int}


class WeakEraser(UserWarning):
    """Warning of an eraser that is unreliable."""


def checked(data: Any) -> dict[str, Any]:
    """Return a verdict after checking it. Raise TypeError or ValueError if it is malformed."""
    found = _typed(data, KEYS)
    for row in found.get("mentions", ()):
        if not {"word", "caught"} <= set(_typed(row, _MENTION)):
            raise ValueError("verdict: a mention lacks `word` or `caught`")
    for key, types in (("controls", _TOUCHED), ("benign", _TOUCHED), ("protected", _PROTECTED)):
        _typed(found.get(key, {}), types)
    if not all(
        isinstance(text, str) for text in (*found.get("weak", ()), *found.get("protected", {}).get("touched", ()))
    ):
        raise TypeError("verdict: weak and protected words should be texts")
    return found


def _typed(data: Any, types: Mapping[str, type]) -> dict[str, Any]:
    if type(data) is not dict:
        raise TypeError("verdict should be an object")
    for key, value in data.items():
        if key not in types:
            raise ValueError(f"verdict: {key!r} is unknown")
        if type(value) is not types[key] and not (types[key] is float and type(value) is int):
            raise TypeError(f"verdict: {key} should be {types[key].__name__}")
    return data


def in_words(verdict: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the result of each test, in words."""
    for row in verdict.get("mentions", ()):
        yield f"“{row['word']}”", _mention(row)
    if "carried" in verdict:
        yield "carried", f"{100 * verdict['carried']:.0f} % of what the concept's word changes"
    if "opened" in verdict:
        yield "own prompts", f"acts on {100 * verdict['opened']:.0f} % of the prompts with the concept"
    if "auroc" in verdict:
        yield "AUROC", f"{verdict['auroc']:.2f} on held-out wordings"
    if isinstance(found := verdict.get("controls"), Mapping):
        yield "control prompts", f"{_touched(found)} where they are kept out of the calibration"
    if isinstance(found := verdict.get("benign"), Mapping):
        most = wilson(found["touched"], found["of"]).high
        yield "benign prompts", f"{_touched(found)}, held out; up to {100 * most:.1f} % in general (95 %)"
    if isinstance(found := verdict.get("protected"), Mapping):
        yield "words for groups of people", _touched(found)


def _mention(row: Mapping[str, Any]) -> str:
    text = "caught" if row["caught"] else "MISSED"
    if row.get("sentences"):
        text += f": {row.get('changed', 0)} of {row['sentences']} sentences change"
    elif "moved" in row:
        text += f": moves the prediction by {row['moved']:.2g}"
    relative = row.get("relative")
    return text if relative is None else f"{text}, {100 * relative:.0f} % as much as the name's"


def _touched(found: Mapping[str, Any]) -> str:
    touched = found.get("touched", 0)
    words = touched if isinstance(touched, list) else []
    count = len(words) if isinstance(touched, list) else touched
    text = f"{count} of {found.get('of', 0)} change"
    return f"{text}: {', '.join(map(str, words))}" if words else text
