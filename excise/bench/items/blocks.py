"""Block: the records and pictures of a few cases in one file, a ZIP that any program opens.

`records.jsonl` has one line per picture, and `CASE.png` is the picture. Nothing is compressed a second time. A file is
written once, by one rename. It may come from a stranger: sizes are checked before anything is read, and nothing is
unpacked by the names inside.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from excise.errors import ExciseError, reason
from excise.files import SMALL, is_leftover, open_regular, parse_json

LARGEST = 4 * 2**30
"""Size in bytes up to which blocks are read."""
RECORDS = "records.jsonl"
_NOT_DATED = (1980, 1, 1, 0, 0, 0)


def packed(records: Sequence[Mapping[str, Any]], pictures: Mapping[str, bytes]) -> bytes:
    """Return the bytes of a block: the same for the same records and pictures by case."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as block:
        lines = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)
        block.writestr(zipfile.ZipInfo(RECORDS, _NOT_DATED), lines)
        for case, data in pictures.items():
            block.writestr(zipfile.ZipInfo(f"{case}.png", _NOT_DATED), data)
    return buffer.getvalue()


def files(run: Path, unit: str) -> list[Path]:
    """Return a unit's blocks in order. Raises ExciseError if its folder is a link, which may lead anywhere."""
    folder = run / "blocks" / unit
    if folder.is_symlink():
        raise ExciseError(f"{folder} is a link; a run may hold none")
    return sorted(path for path in folder.glob("*.zip") if not is_leftover(path.name))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return a block's records. Raises ExciseError if it is not a block."""
    with _opened(path) as block:
        found = [parse_json(line) for line in _read(block, RECORDS).splitlines()]
        if not all(isinstance(record, dict) and {str} == {type(record.get(k)) for k in KEYS} for record in found):
            raise ValueError("it holds a record without a method or a case")
        return found


KEYS = ("method", "case")


def read_picture(path: Path, case: str) -> bytes:
    """Return the PNG of a case. Raises ExciseError if the block has none, or is not a block."""
    with _opened(path) as block:
        return _read(block, f"{case}.png")


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with open_regular(path, LARGEST, follow=False) as file, zipfile.ZipFile(file) as block:
            yield block
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ExciseError(f"cannot read {path} ({reason(error)}); delete it and resume the run") from error


def _read(block: zipfile.ZipFile, name: str) -> bytes:
    entry = block.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > SMALL:
        raise ValueError(f"{name} is compressed or too large")
    return block.read(entry)
