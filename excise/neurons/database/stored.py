"""What a neuron database's file holds, checked: SQLite stores any value in any column, and a stranger any text.

Every function raises ValueError, TypeError or OverflowError for what `NeuronDatabase` does not write.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Iterator, Sequence
from typing import Any

from excise.errors import shown
from excise.files import parse_json
from excise.neurons.context import Context
from excise.neurons.database.entry import Entry, Explanation, Measured, Provenance, Tag

PATIENCE = 60.0
"""Seconds that a query of a database may take."""
_PARTS = 100
"""Tables and indices that a file may hold."""
_MOST = 2**63 - 1
"""Largest number of SQLite."""


def as_json(text: Any) -> Any:
    """Return the content of a stored JSON text, whose figures are finite."""
    return parse_json(_text(text), finite=True)


def as_entry(row: Sequence[Any], tags: list[Tag], scores: dict[str, Measured]) -> Entry:
    """Return a neuron's entry from its row in the order that `NeuronDatabase` selects."""
    index, text, by, at, density, peak, histogram, contexts, spread, nearest, near, patterns = row
    for told in (text, by, at) if text is not None else ():
        _text(told)
    for tag in tags:
        _text(tag.concept), _figure(tag.score), _figure(tag.auroc)
    return Entry(
        index,
        _figure(density),
        _figure(peak),
        tuple(map(_whole, _list(histogram))),
        tuple(_contexts(contexts)),
        tuple(_contexts(spread)),
        tuple((_text(token), _number(how)) for token, how in _list(nearest)),
        tuple((_whole(other), _number(how)) for other, how in _list(near)),
        tuple(tags),
        None if text is None else Explanation(text, by, at),
        scores,
        tuple(_list(patterns)),
    )


def as_score(name: Any, value: Any, detail: Any) -> dict[str, Measured]:
    """Return a stored score by its name."""
    return {_text(name): Measured(_figure(value), as_json(detail))}


def as_provenance(stored: Any) -> Provenance:
    """Return what `NeuronDatabase.create` stored."""
    made = Provenance(**stored)
    if not (type(made.m) in (int, type(None)) and type(made.prompts) is int):
        raise ValueError("its numbers of neurons and prompts are not whole numbers")
    for text in (made.sae, made.site, made.corpus, made.prompts_sha256, made.date):
        _text(text)
    if not (isinstance(made.versions, dict) and isinstance(made.settings, dict)):
        raise ValueError("its versions or settings are not an object")
    return made


def refuse_programs(connection: sqlite3.Connection) -> None:
    """Keep a file from a stranger from running anything: it may hold tables and our index, no view and no trigger.

    A statement that takes longer than `PATIENCE` is ended.
    """
    connection.execute("PRAGMA trusted_schema=OFF")
    ends = [0.0, 0.0]

    def late() -> bool:
        # Called often while a statement runs. A pause means that another one began.
        now = time.monotonic()
        if now - ends[1] > 1:
            ends[0] = now + PATIENCE
        ends[1] = now
        return now > ends[0]

    connection.set_progress_handler(late, 10_000)
    parts = connection.execute(f"SELECT type, name, sql FROM sqlite_master LIMIT {_PARTS + 1}").fetchall()
    if len(parts) > _PARTS:
        raise ValueError(f"it holds more than {_PARTS} tables and indices")
    for kind, name, sql in parts:
        virtual = "virtual" in str(sql).lower().split("(")[0].split()
        if kind not in ("table", "index") or (virtual and not (name == "words" and "using fts5(" in str(sql).lower())):
            raise ValueError(f"it holds the {'virtual table' if virtual else kind} {shown(name)}")


def _contexts(text: str) -> Iterator[Context]:
    """Yield what `pack` wrote."""
    for tokens, codes in _list(text):
        if len(tokens) != len(codes):
            raise ValueError(f"a context has {len(tokens)} tokens but {len(codes)} codes")
        yield Context(tuple(map(_text, tokens)), tuple(map(_number, codes)))


def _list(text: Any) -> list[Any]:
    content = as_json(text)
    if not isinstance(content, list):
        raise ValueError("a list is not a list")
    return content


def _figure(value: Any) -> float | None:
    return None if value is None else _number(value)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("a figure is not a number")
    return float(value)


def _whole(value: Any) -> int:
    if type(value) is not int or not -_MOST <= value <= _MOST:
        raise ValueError("a count is not a whole number")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("a text is not text")
    value.encode()  # refuses half a surrogate pair
    return value
