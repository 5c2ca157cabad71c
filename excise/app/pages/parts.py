"""Parts of pages as plain data: badges and tables. Templates draw them (templates/parts.html)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from excise.bench.bars import Standing

Look = Literal["good", "part", "bad", "plain"]
LOOKS: dict[Standing | None, Look] = {"reached": "good", "point only": "part", "missed": "bad", None: "plain"}
"""The look of a standing's badge."""


@dataclass(frozen=True)
class Badge:
    """A word or two that stand out."""

    text: str
    look: Look = "plain"


@dataclass(frozen=True)
class Cell:
    """A table's cell: text, a faint note below it, and a badge in front of it."""

    text: str
    note: str = ""
    badge: Badge | None = None


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows. `heads` may be empty; `prose` is for cells of running text."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    prose: bool = False
