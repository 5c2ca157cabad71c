"""Parser of pairs in a language model's answer: JSON, tables, numbered lists, labelled lines."""

from __future__ import annotations

import json
import re
from typing import Any

from excise.concepts.sifting import Candidate

_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL | re.IGNORECASE)
_BULLET = re.compile(r"^\s*(?:(?:\(?\d{1,4}[.):]|[-*•–])\s*)+")
_NAME = r"(?P<name>de[- ]?concept|concept)(?:[ _-](?:prompt|side))?"
_LABEL = re.compile(rf"^\W*{_NAME}[\W\d]*?[:=]\s*(?P<text>.*)$", re.IGNORECASE)
_KEY = re.compile(rf"^{_NAME}$", re.IGNORECASE)
_OPENING = re.compile(r"[{\[]")
_BETWEEN = re.compile(r"\s*(?:\||\t|→|⇒|->|=>)\s*")
LONGEST = 200_000
"""Characters of an answer that are read."""
_QUOTES = "\"'`“”‘’«»*"


def parse(answer: str) -> tuple[list[Candidate], list[str]]:
    """Parse an answer into candidates and unreadable pieces, each in the order of the answer.

    It reads JSON objects with "concept" and "deconcept" or lists of two texts, on lines, in lists or under any key;
    lines of two texts with a |, a tab or an arrow between them (table rows included), numbered or not; and
    "concept: ..." followed by "deconcept: ...". Lines without letters, code fences and <think> blocks are ignored.
    """
    found: list[tuple[int, Candidate]] = []
    broken: list[tuple[int, str]] = []
    text = _THOUGHTS.sub(lambda m: "\n" * m.group().count("\n"), answer[:LONGEST])
    text = _without_json(text, found, broken)
    pending: tuple[int, str] | None = None
    at = 0
    for line in text.splitlines(keepends=True):
        here, at = at, at + len(line)
        line = line.strip()
        if not any(c.isalpha() for c in line) or line.startswith("```"):
            continue
        bare = _BULLET.sub("", line)
        label = _LABEL.match(bare)
        sides = [_unlabelled(side) for side in _BETWEEN.split(bare.strip("| \t")) if side.strip()]
        if len(sides) == 3 and sides[0].rstrip(".)").isdigit():
            del sides[0]
        if len(sides) == 2:
            found.append((here, Candidate(*sides)))
        elif label and label["name"].lower() == "concept":
            if pending:
                broken.append(pending)
            pending = (here, line)
        elif label and pending:
            found.append((pending[0], Candidate(_unlabelled(_BULLET.sub("", pending[1])), _unlabelled(bare))))
            pending = None
        else:
            broken.append((here, line))
    if pending:
        broken.append(pending)
    return [c for _, c in sorted(found, key=lambda f: f[0])], [b for _, b in sorted(broken, key=lambda b: b[0])]


def _without_json(text: str, found: list[tuple[int, Candidate]], broken: list[tuple[int, str]]) -> str:
    """Return the text with its JSON blanked out. Appends its pairs to `found`, and its other entries to `broken`."""
    decoder, at = json.JSONDecoder(), 0
    while opening := _OPENING.search(text, at):
        at = opening.start()
        try:
            value, end = decoder.raw_decode(text, at)
        except ValueError:
            at += 1
            continue
        except RecursionError:  # nested too deeply for any pair
            return text
        entries = _entries(value)
        if entries is None:
            at += 1
            continue
        for entry in entries:
            sides = _sides(entry)
            if sides:
                found.append((at, Candidate(*map(_whole, sides))))
            else:
                broken.append((at, _whole(json.dumps(entry, ensure_ascii=False))))
        text = text[:at] + re.sub(r"[^\n]", " ", text[at:end]) + text[end:]
        at = end
    return text


def _entries(value: Any) -> list[Any] | None:
    """Return the entries of a JSON value that should each be a pair; None for others, such as a footnote's [1]."""
    if _sides(value):
        return [value]
    if isinstance(value, list) and any(isinstance(entry, (dict, list)) for entry in value):
        return value
    if isinstance(value, dict):
        inner = [_entries(v) for v in value.values() if isinstance(v, (dict, list))]
        return [entry for entries in inner for entry in entries or []] or [value]
    return None


def _sides(entry: Any) -> tuple[str, str] | None:
    if isinstance(entry, list) and len(entry) == 2 and all(isinstance(side, str) for side in entry):
        return entry[0], entry[1]
    if isinstance(entry, dict):
        named = {m["name"].lower()[:2]: v for k, v in entry.items() if (m := _KEY.match(k))}
        concept, deconcept = named.get("co"), named.get("de")
        if isinstance(concept, str) and isinstance(deconcept, str):
            return concept, deconcept
    return None


def _whole(text: str) -> str:
    """Return a text without halves of surrogate pairs, which JSON may escape: they can be neither saved nor printed."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _unlabelled(side: str) -> str:
    """Return a side without its label and quotes."""
    label = _LABEL.match(side)
    return (label["text"] if label else side).strip().strip(_QUOTES).strip().removesuffix(",").strip(_QUOTES)
