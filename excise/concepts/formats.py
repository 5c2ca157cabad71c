"""Files of pairs and prompts: csv, jsonl, plain text, parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

from excise.concepts.concept import Pair
from excise.errors import ExciseError, MissingExtra
from excise.files import LINE, open_regular, parse_json, write_atomic

COLUMNS = ("concept", "deconcept", "template")


def save_pairs(pairs: Iterable[Pair], path: Path | str) -> None:
    """Write pairs as .csv or .jsonl with the columns in `COLUMNS`. Raises ExciseError for another ending."""
    path, rows = Path(path), [{c: getattr(p, c) for c in COLUMNS} for p in pairs]
    if path.suffix == ".csv":
        out = io.StringIO()
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(path, out.getvalue())
    elif path.suffix == ".jsonl":
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        raise ExciseError(f"cannot save pairs as '{path.name}': the name must end in .csv or .jsonl")


def load_pairs(path: Path | str) -> tuple[Pair, ...]:
    """Read pairs from a .csv or .jsonl file with the columns concept, deconcept and, optionally, template.

    Raises ExciseError for a missing, empty or broken file, a missing column, or a row with an empty side.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".jsonl"):
        raise ExciseError(f"cannot read pairs from '{path.name}': a .csv or .jsonl file is needed")
    pairs = []
    for where, row in read_rows(path):
        concept, deconcept = (_text(row, column, path, where) for column in COLUMNS[:2])
        if not concept.strip() or not deconcept.strip():
            raise ExciseError(f"{path}, {where}: an empty side; give both concept and deconcept text")
        pairs.append(Pair(concept, deconcept, str(row.get("template") or "")))
    if not pairs:
        raise ExciseError(f"{path} holds no pairs; give it rows with concept and deconcept")
    return tuple(pairs)


def read_prompts(path: Path | str, column: str = "prompt") -> Iterator[str]:
    """Stream the prompts of a .txt (one per line), .csv, .jsonl or .parquet file. Blank ones are left out.

    Raises ExciseError at the call if the file is missing, of another kind, or without prompts or the column; and while
    streaming, for text that is not UTF-8 or is broken further down.
    """
    path = Path(path)
    prompts = _prompts(path, column)
    first = next(prompts, None)
    if first is None:
        raise ExciseError(f"{path} holds no prompts; fill it or choose another file")
    return chain([first], prompts)


def read_labelled(
    path: Path | str, columns: Sequence[str], prompt: str = "prompt"
) -> Iterator[tuple[str, dict[str, tuple[str, ...]]]]:
    """Stream the prompts of a .csv or .jsonl file, each with its labels by column.

    A cell holds labels separated by semicolons. Raises ExciseError for a file of another kind, a missing column, and
    for the reasons that `read_rows` does.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".jsonl"):
        raise ExciseError(f"labels need columns; give a .csv or .jsonl file, not '{path.name}'")
    for where, row in read_rows(path):
        text = _text(row, prompt, path, where).strip()
        cells = {name: _text(row, name, path, where).split(";") for name in columns}
        if text:
            yield text, {name: tuple(filter(None, (word.strip() for word in cell))) for name, cell in cells.items()}


def _prompts(path: Path, column: str) -> Iterator[str]:
    texts: Iterator[str]
    if path.suffix == ".txt":
        texts = (line for _, line in _lines(path))
    elif path.suffix in (".csv", ".jsonl"):
        texts = (_text(row, column, path, where) for where, row in read_rows(path))
    elif path.suffix == ".parquet":
        texts = _parquet(path, column)
    else:
        raise ExciseError(f"cannot read prompts from '{path.name}': a .txt, .csv, .jsonl or .parquet file is needed")
    return (text.strip() for text in texts if text.strip())


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the place and text of each line of a UTF-8 file, line ends included. A byte order mark is dropped."""
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            for number in count(1):
                if not (line := file.readline(LINE + 1)):
                    break
                if len(line) > LINE:
                    raise ExciseError(f"{path}, line {number}: longer than {LINE} characters; is it a text file?")
                yield f"line {number}", line
    except UnicodeDecodeError as error:
        raise ExciseError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8 text") from error
    except OSError as error:
        raise ExciseError(f"cannot read {path}: {error.strerror or error}; check the name") from error


def read_rows(path: Path | str) -> Iterator[tuple[str, dict[str, object]]]:
    """Stream the place and content of each row in a csv file with a header, or a jsonl file of objects.

    Raises ExciseError while streaming if the file is missing, not UTF-8 or broken.
    """
    path = Path(path)
    if path.suffix == ".csv":
        csv.field_size_limit(LINE)  # captions in scraped corpora exceed the default 128 kB
        reader = csv.DictReader(line for _, line in _lines(path))
        try:
            for row in reader:
                yield f"line {reader.line_num}", {k: v for k, v in row.items() if isinstance(k, str)}
        except csv.Error as error:
            raise ExciseError(f"{path}, line {reader.line_num}: broken csv ({error}); correct that line") from error
        return
    for where, line in _lines(path):
        if line.strip():
            yield where, _object(line, path, where)


def _object(line: str, path: Path, where: str) -> dict[str, object]:
    """Return the object in a line of a jsonl file."""
    try:
        row = parse_json(line)
    except ValueError as error:
        raise ExciseError(f"{path}, {where}: not JSON ({error}); each line must be one JSON object") from error
    if not isinstance(row, dict):
        raise ExciseError(f'{path}, {where}: not a JSON object; each line must look like {{"prompt": "a cat"}}')
    return row


def _parquet(path: Path, column: str) -> Iterator[str]:
    with parquet_file(path, column) as file:
        for batch in file.iter_batches(columns=[column]):
            for value in batch.column(0).to_pylist():
                yield _text({column: value}, column, path, "a row")


@contextmanager
def parquet_file(path: Path, column: str | None = None) -> Iterator[Any]:
    """Open a parquet file, as pyarrow's `ParquetFile`.

    Raises ExciseError if it cannot be read or has no such column, and MissingExtra without pyarrow.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtra(f"reading {path.name} needs pyarrow; install it with: pip install pyarrow") from error
    try:
        with open_regular(path) as opened, parquet.ParquetFile(opened) as file:
            if column is not None and column not in file.schema_arrow.names:
                raise _no_column(path, "its schema", column, file.schema_arrow.names)
            yield file
    except (OSError, ArrowException) as error:
        raise ExciseError(f"cannot read {path}: {error}; is it a parquet file?") from error


def prompts_in_lines(path: Path, data: bytes, column: str, row: int) -> Iterator[tuple[int, str]]:
    """Yield the prompts in some lines of a .txt or .jsonl file, each with its line's number in `data`, from 0.

    `row` is the number of lines before them, for messages. Raises ExciseError as `read_prompts` does.
    """
    try:
        text = data.decode("utf-8-sig" if row == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise ExciseError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8 text") from error
    for number, line in enumerate(io.StringIO(text, newline="")):
        where = f"line {row + number + 1}"
        if line.strip():
            prompt = line if path.suffix == ".txt" else _text(_object(line, path, where), column, path, where)
            if prompt.strip():
                yield number, prompt.strip()


def _text(row: dict[str, object], column: str, path: Path, where: str) -> str:
    if column not in row:
        raise _no_column(path, where, column, row)
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise ExciseError(f"{path}, {where}: '{column}' is {type(value).__name__}, not text; choose a column of text")
    return value or ""


def _no_column(path: Path, where: str, column: str, found: Iterable[str]) -> ExciseError:
    return ExciseError(f"{path}, {where}: no column '{column}'; the columns are {', '.join(found) or 'none'}")
