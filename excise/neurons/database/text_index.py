"""Search of the neuron database: SQLite's full-text index if it has one, substring comparison otherwise.

The table `texts` holds what is searched. The index on it, `words`, is a virtual table (FTS5) without a copy of the
texts; a sqlite without FTS5 does not update it, and marks it in `meta` as out of date.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Mapping, Sequence

SEARCHED = ("explanation", "tags", "patterns", "tokens", "contexts")
WEIGHTS = (16.0, 16.0, 4.0, 4.0, 1.0)
"""Weight of a match in each of `SEARCHED` when results are sorted."""
WHOLE, START, INSIDE, FIRST = 3.0, 2.0, 1.0, 0.25
"""Value of a match as a word, at its start, inside of it; and the bonus for standing first in its text."""

_NAMES = ", ".join(SEARCHED)
_TEXTS = f"CREATE TABLE texts (neuron INTEGER PRIMARY KEY, {', '.join(f'{name} TEXT NOT NULL' for name in SEARCHED)})"
_WORDS = (
    f"CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5({_NAMES}, content='texts', content_rowid='neuron', "
    "tokenize='unicode61 remove_diacritics 2')"
)
_ROWS = f"SELECT texts.neuron, {', '.join(f'texts.{name}' for name in SEARCHED)} FROM texts JOIN neurons USING (neuron)"
_ORDER = "ORDER BY neurons.density DESC, texts.neuron"


def has_full_text(connection: sqlite3.Connection) -> bool:
    """Return whether this sqlite has FTS5."""
    return bool(connection.execute("SELECT sqlite_compileoption_used('ENABLE_FTS5')").fetchone()[0])


def create(connection: sqlite3.Connection) -> None:
    """Create the tables, in the open transaction; `meta` exists already."""
    connection.execute(_TEXTS)
    if has_full_text(connection):
        connection.execute(_WORDS)
    connection.execute("INSERT INTO meta VALUES ('indexed', 'true')")


def put(connection: sqlite3.Connection, neuron: int, texts: Mapping[str, str]) -> None:
    """Replace what is searched of one neuron."""
    row = [texts[name] for name in SEARCHED]
    before = connection.execute(f"SELECT {_NAMES} FROM texts WHERE neuron = ?", (neuron,)).fetchone()
    marks = ", ?" * len(SEARCHED)
    connection.execute(f"INSERT OR REPLACE INTO texts (neuron, {_NAMES}) VALUES (?{marks})", (neuron, *row))
    if not has_full_text(connection):
        connection.execute("UPDATE meta SET value = 'false' WHERE key = 'indexed'")
    elif _up_to_date(connection):
        if before is not None:
            # An index without a copy of the texts needs the old ones to delete them.
            forget = f"INSERT INTO words (words, rowid, {_NAMES}) VALUES ('delete', ?{marks})"
            connection.execute(forget, (neuron, *before))
        connection.execute(f"INSERT INTO words (rowid, {_NAMES}) VALUES (?{marks})", (neuron, *row))


def find(connection: sqlite3.Connection, text: str, limit: int) -> list[int]:
    """Return neurons whose texts contain every word of `text`, as whole words or prefixes.

    If the index finds none, any substring counts. Sorted by `relevance`, equal ones by how often they fire.
    """
    rows = _matching(connection, text) or _containing(connection, text)
    words = _folded(text).split()
    ranked = sorted(rows, key=lambda row: -relevance(words, [_folded(field) for field in row[1:]]))
    return [int(row[0]) for row in ranked[:limit]]


def relevance(words: Sequence[str], fields: Sequence[str]) -> float:
    """Return how well a neuron's texts, in the order of `SEARCHED`, match: the sum of each word's best match in any."""
    return sum(max(w * _hit(field, word) for w, field in zip(WEIGHTS, fields, strict=True)) for word in words)


def _hit(field: str, word: str) -> float:
    best = 0.0
    for found in re.finditer(re.escape(word), field):
        starts = found.start() == 0 or not field[found.start() - 1].isalnum()
        ends = found.end() == len(field) or not field[found.end()].isalnum()
        kind = INSIDE if not starts else WHOLE if ends else START
        best = max(best, kind + FIRST * (1 - found.start() / len(field)))
    return best


def _folded(text: str) -> str:
    """Return the text without capitals and accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).lower()


def _matching(connection: sqlite3.Connection, text: str) -> list[tuple[int, str, str, str, str, str]]:
    words = [f'"{word}"*' for word in re.findall(r"\w+", text)]
    if not words or not has_full_text(connection) or not _brought_up_to_date(connection):
        return []
    found = "texts.neuron IN (SELECT rowid FROM words WHERE words MATCH ?)"
    return connection.execute(f"{_ROWS} WHERE {found} {_ORDER}", (" ".join(words),)).fetchall()


def _containing(connection: sqlite3.Connection, text: str) -> list[tuple[int, str, str, str, str, str]]:
    escape = str.maketrans({"%": "\\%", "_": "\\_", "\\": "\\\\"})
    words = [f"%{word.translate(escape)}%" for word in text.split()]
    anywhere = " OR ".join(f"texts.{name} LIKE ? ESCAPE '\\'" for name in SEARCHED)
    found = " AND ".join([f"({anywhere})"] * len(words))
    given = [word for word in words for _ in SEARCHED]
    return connection.execute(f"{_ROWS} WHERE {found} {_ORDER}", given).fetchall()


def _up_to_date(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT value FROM meta WHERE key = 'indexed'").fetchone() == ("true",))


def _brought_up_to_date(connection: sqlite3.Connection) -> bool:
    """Rebuild the index if it is out of date; return False if the file is read-only."""
    if _up_to_date(connection):
        return True
    try:
        with connection:
            connection.execute(_WORDS)
            connection.execute("INSERT INTO words (words) VALUES ('rebuild')")
            connection.execute("UPDATE meta SET value = 'true' WHERE key = 'indexed'")
    except sqlite3.OperationalError:
        return False
    return True
