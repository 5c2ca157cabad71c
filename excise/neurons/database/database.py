"""The neuron database: what is known about every neuron of one SAE, in one SQLite file."""

from __future__ import annotations

import datetime
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excise.errors import ExciseError, InvalidSetting, NotFound, shown
from excise.neurons.database import text_index
from excise.neurons.database.entry import Entry, Explanation, Measured, Provenance, Tag, finite, pack, to_json
from excise.neurons.database.export import write
from excise.neurons.database.stored import as_entry, as_json, as_provenance, as_score, refuse_programs

if TYPE_CHECKING:
    from typing_extensions import Self

SCHEMA = "excise.neurons/1"
COLUMNS = ("density", "peak", "histogram", "contexts", "spread", "nearest", "near", "patterns")
_SOME = "neuron IN (SELECT value FROM json_each(?))"
_TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE neurons (
        neuron INTEGER PRIMARY KEY, density REAL, peak REAL, histogram TEXT NOT NULL, contexts TEXT NOT NULL,
        spread TEXT NOT NULL, nearest TEXT NOT NULL, near TEXT NOT NULL, patterns TEXT NOT NULL,
        explanation TEXT, explained_by TEXT, explained_at TEXT)""",
    "CREATE TABLE tags (neuron INTEGER, concept TEXT, score REAL, auroc REAL, PRIMARY KEY (neuron, concept))",
    "CREATE TABLE scores (neuron INTEGER, name TEXT, value REAL, detail TEXT NOT NULL, PRIMARY KEY (neuron, name))",
    "CREATE TABLE scratch (number INTEGER PRIMARY KEY, data BLOB NOT NULL)",
)


class NeuronDatabase:
    """Database of what is known about the neurons of one SAE; use it as a context manager.

    It leaves out neurons that were silent on the corpus. Every change is atomic. All methods raise ExciseError if the
    file is damaged, another program locks it, or the disk refuses.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, provenance: Provenance) -> None:
        self.path, self.provenance, self._connection = path, provenance, connection

    @classmethod
    def create(cls, path: Path, provenance: Provenance) -> Self:
        """Create an empty database. Raises ExciseError if the file exists."""
        if path.exists():
            raise ExciseError(f"{path} exists already; choose another name")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExciseError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
        with _sqlite_errors(path):
            connection = sqlite3.connect(path)
            with connection:
                connection.execute("BEGIN")
                for table in _TABLES:
                    connection.execute(table)
                meta = {"schema": SCHEMA, "provenance": asdict(provenance)}
                rows = [(key, to_json(value, key)) for key, value in meta.items()]
                connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
                text_index.create(connection)
        return cls(path, connection, provenance)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a database file. Raises ExciseError if it does not exist, or is another kind of file."""
        if not path.is_file():
            raise NotFound(f"there is no neuron database {path}; make one with `excise neurons build --out {path}`")
        connection = None
        try:
            connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=30)
            refuse_programs(connection)
            meta = dict(connection.execute("SELECT key, value FROM meta LIMIT 100").fetchall())
            meta = {key: as_json(value) for key, value in meta.items()}
            if meta["schema"] != SCHEMA:
                raise ExciseError(
                    f"{path} has the unknown format {shown(meta['schema'])}; build it again with this version"
                )
            return cls(path, connection, as_provenance(meta["provenance"]))
        except BaseException as error:
            if connection is not None:
                connection.close()
            if not isinstance(error, (sqlite3.Error, ValueError, KeyError, TypeError, OverflowError)):
                raise
            raise ExciseError(f"{path} is not a neuron database, or damaged ({error}); build it again") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __len__(self) -> int:
        """Return the number of neurons in it."""
        return int(self._all("SELECT count(*) FROM neurons")[0][0])

    def indices(self) -> list[int]:
        """Return the neurons' indices in rising order."""
        found = [row[0] for row in self._all("SELECT neuron FROM neurons ORDER BY neuron")]
        if not all(type(index) is int for index in found):
            raise _damaged(self.path, ValueError("a neuron's index is not a whole number"))
        return found

    def neuron(self, index: int) -> Entry:
        """Return one neuron's entry. Raises ExciseError if there is none."""
        found = self._entries([index])
        if not found:
            raise self._missing(index)
        return found[0]

    def entries(self) -> Iterator[Entry]:
        """Yield all entries by index."""
        indices = self.indices()
        for start in range(0, len(indices), 256):
            yield from self._entries(indices[start : start + 256])

    def search(self, text: str, limit: int = 50) -> list[Entry]:
        """Return neurons with every word of `text` in explanation, tags, patterns, tokens or contexts, best first.

        Words also match as prefixes. A number also finds the neuron with that index.
        """
        if not text.strip() or limit < 1:
            return []
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            raise InvalidSetting("the text to search for holds half a surrogate pair; leave it out")
        try:
            with _sqlite_errors(self.path):
                found = text_index.find(self._connection, text, limit)
        except TypeError as error:  # what is searched is not text
            raise _damaged(self.path, error) from error
        if re.fullmatch(r"[0-9]{1,9}", text.strip()):
            found = list(dict.fromkeys([int(text), *found]))
        known = {entry.index: entry for entry in self._entries(found)}
        return [known[index] for index in found if index in known][:limit]

    def add(self, entries: Iterable[Entry]) -> None:
        """Add neurons; existing ones stay as they are."""
        with self._change():
            for entry in entries:
                lists = (list(entry.histogram), entry.nearest, entry.near, entry.patterns)
                histogram, nearest, near, patterns = (to_json(part, f"neuron {entry.index}") for part in lists)
                figures = (finite(entry.density), finite(entry.peak), histogram, pack(entry.contexts))
                row = (entry.index, *figures, pack(entry.spread), nearest, near, patterns)
                added = self._connection.execute(
                    f"INSERT OR IGNORE INTO neurons (neuron, {', '.join(COLUMNS)}) VALUES (?{', ?' * len(COLUMNS)})",
                    row,
                )
                if not added.rowcount:
                    continue
                for tag in entry.tags:
                    self._tag(entry.index, tag)
                self._score(entry.index, entry.scores)
                if entry.explanation:
                    self._explain(entry.index, entry.explanation)
                self._index(entry.index)

    def set_explanation(self, index: int, text: str, by: str, at: str | None = None) -> None:
        """Set a neuron's explanation; `by` is its author, person or model, `at` its time (default: now)."""
        made = Explanation(text, by, at or datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"))
        with self._change(index):
            self._explain(index, made)

    def set_scores(self, index: int, scores: Mapping[str, Measured]) -> None:
        """Set scores by name; others are kept. Values that are not finite become None."""
        with self._change(index):
            self._score(index, scores)

    def set_patterns(self, index: int, patterns: Sequence[Any]) -> None:
        """Set the patterns that it fires on, each a text or a json object with a `text`."""
        with self._change(index):
            text = to_json(list(patterns), "a pattern")
            self._connection.execute("UPDATE neurons SET patterns = ? WHERE neuron = ?", (text, index))

    def add_tag(self, index: int, tag: Tag) -> None:
        """Tag a neuron with a concept; an existing tag of that concept is replaced."""
        with self._change(index):
            self._tag(index, tag)

    def remove_tags(self, concept: str) -> None:
        """Remove a concept's tag from every neuron."""
        for (index,) in self._all("SELECT neuron FROM tags WHERE concept = ?", (concept,)):
            with self._change(index):
                self._connection.execute("DELETE FROM tags WHERE neuron = ? AND concept = ?", (index, concept))

    def export(self, path: Path) -> None:
        """Export all as .jsonl, .csv or .parquet (which needs pyarrow). Raises ExciseError for another ending."""
        write(self.entries(), path)

    def keep(self, number: int, data: bytes) -> None:
        """Keep an intermediate result, so that interrupted work can be resumed."""
        with self._change():
            self._connection.execute("INSERT OR REPLACE INTO scratch VALUES (?, ?)", (number, data))

    def kept(self) -> list[bytes]:
        """Return the intermediate results by number."""
        return [row[0] for row in self._all("SELECT data FROM scratch ORDER BY number")]

    def finish(self) -> None:
        """Delete intermediate results."""
        with self._change():
            self._connection.execute("DELETE FROM scratch")
        with _sqlite_errors(self.path):
            self._connection.execute("VACUUM")

    def _entries(self, indices: Sequence[int]) -> list[Entry]:
        some = (json.dumps(list(indices)),)
        tags: dict[int, list[Tag]] = {}
        scores: dict[int, dict[str, Measured]] = {}
        order = "ORDER BY auroc IS NULL, auroc DESC, score DESC, concept"
        for index, *tag in self._all(f"SELECT neuron, concept, score, auroc FROM tags WHERE {_SOME} {order}", some):
            tags.setdefault(index, []).append(Tag(*tag))
        measured = self._all(f"SELECT neuron, name, value, detail FROM scores WHERE {_SOME} ORDER BY name", some)
        columns = f"neuron, explanation, explained_by, explained_at, {', '.join(COLUMNS)}"
        rows = self._all(f"SELECT {columns} FROM neurons WHERE {_SOME} ORDER BY neuron", some)
        try:
            for index, name, value, detail in measured:
                scores.setdefault(index, {}).update(as_score(name, value, detail))
            return [as_entry(row, tags.get(row[0], []), scores.get(row[0], {})) for row in rows]
        except (ValueError, TypeError, OverflowError) as error:
            raise _damaged(self.path, error) from error

    def _index(self, index: int) -> None:
        """Update the search index for a neuron."""
        text_index.put(self._connection, index, self._entries([index])[0].searched())

    def _explain(self, index: int, made: Explanation) -> None:
        self._connection.execute(
            "UPDATE neurons SET explanation = ?, explained_by = ?, explained_at = ? WHERE neuron = ?",
            (made.text, made.by, made.at, index),
        )

    def _tag(self, index: int, tag: Tag) -> None:
        row = (index, tag.concept, finite(tag.score), finite(tag.auroc))
        self._connection.execute("INSERT OR REPLACE INTO tags VALUES (?, ?, ?, ?)", row)

    def _score(self, index: int, scores: Mapping[str, Measured]) -> None:
        rows = [(index, name, finite(s.value), to_json(s.detail, f"score {name!r}")) for name, s in scores.items()]
        self._connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", rows)

    @contextmanager
    def _change(self, index: int | None = None) -> Iterator[None]:
        """Make an atomic change, and update the search index if it concerns one neuron."""
        with _sqlite_errors(self.path), self._connection:
            if index is not None and not self._all(f"SELECT 1 FROM neurons WHERE {_SOME}", (json.dumps([index]),)):
                raise self._missing(index)
            yield
            if index is not None:
                self._index(index)

    def _missing(self, index: int) -> ExciseError:
        m = self.provenance.m
        if m is not None and 0 <= index < m:
            return ExciseError(f"neuron {index} never fires on the corpus of {self.path}; build one on other prompts")
        return ExciseError(f"there is no neuron {index} in {self.path}, which describes {len(self)} of them")

    def _all(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with _sqlite_errors(self.path):
            return self._connection.execute(query, values).fetchall()


@contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    """Turn sqlite's exceptions into one-line ExciseErrors."""
    try:
        yield
    except sqlite3.OperationalError as error:
        hint = "is another program writing to it, is the disk full, or do you lack write access?"
        raise ExciseError(f"cannot use {path}: {error}; {hint}") from error
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:  # a bug, not a damaged file
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ExciseError:
    return ExciseError(f"{path} is damaged ({error}); build it again with `excise neurons build`")
