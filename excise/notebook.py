"""Representations of objects: one line in a terminal, a small table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from excise.errors import shown


def line(kind: object, *parts: str) -> str:
    """Return `Kind(part, part, ...)`, on one line."""
    return f"{type(kind).__name__}({', '.join(part for part in parts if part)})"


def quoted(text: Any) -> str:
    """Return an untrusted text in quotes, escaped, and shortened if it is long."""
    return shown(str(text))


def counted(number: int, noun: str) -> str:
    """Return `1 pair`, `2 pairs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(items: Sequence[Any], most: int = 3) -> str:
    """Return the first items, and how many more there are."""
    more = f", {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return an HTML table with a caption, texts escaped. Without `columns`, each row's first cell is its heading."""

    def cell(tag: str, value: Any) -> str:
        return f'<{tag} style="text-align:left">{escape(str(value))}</{tag}>'

    head = f"<thead><tr>{''.join(cell('th', column) for column in columns)}</tr></thead>" if columns else ""
    body = "".join(
        f"<tr>{''.join(cell('th' if n == 0 and not columns else 'td', value) for n, value in enumerate(row))}</tr>"
        for row in rows
    )
    return f"<table><caption>{escape(title)}</caption>{head}<tbody>{body}</tbody></table>"
