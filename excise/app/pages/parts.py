"""Parts of pages as plain data: badges and tables. templates/parts.html renders them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from excise.bench.bars import Standing

Look = Literal["good", "part", "bad", "plain"]
LOOKS: dict[Standing | None, Look] = {"reached": "good", "point only": "part", "missed": "bad", None: "plain"}
"""CSS class of each standing's badge."""


@dataclass(frozen=True)
class Badge:
    """A highlighted word or two."""

    text: str
    look: Look = "plain"


@dataclass(frozen=True)
class Cell:
    """A table's cell: text, a note below it, and a badge before it."""

    text: str
    note: str = ""
    badge: Badge | None = None


@dataclass(frozen=True)
class Table:
    """A table whose first column holds row headers. `heads` may be empty; `prose` is for cells of running text."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    prose: bool = False
