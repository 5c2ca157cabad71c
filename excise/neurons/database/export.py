"""Export of neurons to other programs' formats: .jsonl, .csv or .parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from excise.errors import ExciseError, MissingExtra
from excise.files import cell, write_atomic
from excise.neurons.database.entry import Entry, to_json

FLAT = ("neuron", "density", "peak", "explanation", "explained_by", "explained_at")
NESTED = ("tags", "scores", "patterns", "top_tokens", "contexts", "spread", "nearest", "near", "histogram")
"""Columns that are json in a .csv file and lists in a .parquet file."""


def write(entries: Iterable[Entry], path: Path) -> None:
    """Write all entries atomically. Raises ExciseError for another ending, or parquet without pyarrow."""
    writers: dict[str, Callable[[Iterable[Entry]], bytes]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in writers:
        raise ExciseError(f"cannot export to '{path.name}': the name must end in {', '.join(writers)}")
    write_atomic(path, writers[path.suffix](entries))


def _jsonl(entries: Iterable[Entry]) -> bytes:
    return "".join(f"{to_json(entry.row(), 'a neuron')}\n" for entry in entries).encode()


def _csv(entries: Iterable[Entry]) -> bytes:
    out = io.StringIO()
    table = csv.DictWriter(out, (*FLAT, *NESTED))
    table.writeheader()
    for entry in entries:
        row = _flat(entry)
        cells = {name: to_json(row[name], name) if name in NESTED else row[name] for name in (*FLAT, *NESTED)}
        table.writerow({name: cell(value) for name, value in cells.items()})
    return out.getvalue().encode()


def _parquet(entries: Iterable[Entry]) -> bytes:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("parquet needs pyarrow; install it with: pip install 'excise[parquet]'") from error
    number, whole, text = pa.float64(), pa.int64(), pa.string()
    context = pa.list_(pa.struct({"text": text, "tokens": pa.list_(text), "codes": pa.list_(number)}))
    kinds = {
        "neuron": whole,
        "density": number,
        "peak": number,
        **dict.fromkeys(("explanation", "explained_by", "explained_at"), text),
        "tags": pa.list_(pa.struct({"concept": text, "score": number, "auroc": number})),
        "scores": pa.list_(pa.struct({"name": text, "value": number, "detail": text})),
        "patterns": pa.list_(text),
        "top_tokens": pa.list_(text),
        "contexts": context,
        "spread": context,
        "nearest": pa.list_(pa.struct({"token": text, "similarity": number})),
        "near": pa.list_(pa.struct({"neuron": whole, "cosine": number})),
        "histogram": pa.list_(whole),
    }
    rows = [_columnar(entry) for entry in entries]
    out = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(kinds.items()))), out)
    return bytes(out.getvalue().to_pybytes())


def _flat(entry: Entry) -> dict[str, Any]:
    made = entry.explanation
    about = {"explanation": made and made.text, "explained_by": made and made.by, "explained_at": made and made.at}
    return {**entry.row(), **about}


def _columnar(entry: Entry) -> dict[str, Any]:
    """Return a row for typed columns: what varies between neurons (a score's detail, a pattern's figures) as json."""
    row = _flat(entry)
    scores = [{"name": n, "value": s["value"], "detail": json.dumps(s["detail"])} for n, s in row["scores"].items()]
    patterns = [p if isinstance(p, str) else json.dumps(p, ensure_ascii=False) for p in row["patterns"]]
    return {**row, "scores": scores, "patterns": patterns}
