"""Parts of a corpus: ranges of files that are read by themselves, so that many processes can share a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from excise.concepts.formats import parquet_file, prompts_in_lines, read_prompts
from excise.errors import ExciseError
from excise.files import LINE, open_regular

ROWS = 8192
"""Lines in a part of a text file. A part of a parquet file is a row group, and a .csv file is one part."""
ENDINGS = (".txt", ".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Part:
    """A part of a corpus."""

    number: int
    """From 0, through all files."""
    path: str
    kind: Literal["lines", "rows", "file"]
    start: int = 0
    """First byte of the lines, or the number of the row group."""
    size: int = 0
    """Bytes of the lines."""
    row: int = 0
    """Line or row of the file that comes first, from 0."""


def parts_of(path: Path) -> Iterator[Part]:
    """Yield the parts of a file, or of all files with prompts in a folder, by name.

    A text file is read once for this, in constant memory. Raises ExciseError if there is no such file, or it cannot be
    read.
    """
    files = sorted(one for one in path.iterdir() if one.suffix in ENDINGS) if path.is_dir() else [path]
    if not files:
        raise ExciseError(f"{path} has no file of prompts; its files must end in {', '.join(ENDINGS)}")
    number = 0
    for file in files:
        for part in _parts(file):
            yield Part(number, str(file), *part)
            number += 1


def read_part(part: Part, column: str = "prompt") -> list[tuple[int, str]]:
    """Return the prompts of a part, each with the number of its row in the file. Blank ones are left out.

    Raises ExciseError for what `read_prompts` raises it for.
    """
    path = Path(part.path)
    if part.kind == "file":
        return list(enumerate(read_prompts(path, column)))
    if part.kind == "rows":
        with parquet_file(path, column) as file:
            rows = file.read_row_group(part.start, columns=[column]).column(0).to_pylist()
        return [(part.row + n, text.strip()) for n, text in enumerate(rows) if isinstance(text, str) and text.strip()]
    with open_regular(path) as opened:
        opened.seek(part.start)
        data = opened.read(part.size)
    return [(part.row + n, text) for n, text in prompts_in_lines(path, data, column, part.row)]


def _parts(path: Path) -> Iterator[tuple[Literal["lines", "rows", "file"], int, int, int]]:
    if path.suffix not in ENDINGS:
        raise ExciseError(f"cannot read prompts from '{path.name}': a {', '.join(ENDINGS)} file is needed")
    if path.suffix == ".csv":
        yield "file", 0, 0, 0
    elif path.suffix == ".parquet":
        with parquet_file(path) as file:
            sizes = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
        for n, _ in enumerate(sizes):
            yield "rows", n, 0, sum(sizes[:n])
    else:
        yield from _lines(path)


def _lines(path: Path) -> Iterator[tuple[Literal["lines"], int, int, int]]:
    """Yield where each `ROWS` lines begin, how many bytes they take, and the number of the first."""
    try:
        with open_regular(path) as file:
            start, at, row, rows = 0, 0, 0, 0
            while line := file.readline(4 * LINE + 1):
                if len(line) > 4 * LINE:
                    raise ExciseError(f"{path}, line {row + rows + 1}: longer than {LINE} characters; is it text?")
                at, rows = at + len(line), rows + 1
                if rows == ROWS:
                    yield "lines", start, at - start, row
                    start, row, rows = at, row + rows, 0
            if rows:
                yield "lines", start, at - start, row
    except OSError as error:
        raise ExciseError(f"cannot read {path}: {error.strerror or error}; check the name") from error
