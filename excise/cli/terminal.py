"""Printing: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer


def complain(message: str, kind: str = "error") -> None:
    """One line on standard error, whatever line breaks the message holds."""
    typer.echo(f"{kind}: {' '.join(message.split())}", err=True)


def emit(as_json: bool, data: Mapping[str, Any] | Sequence[Any], show: Callable[[], None]) -> None:
    """Print `data` as JSON, or call `show`."""
    if as_json:
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        show()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output; columns after the first are right-aligned."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text, as a plain string's "[...]" would be read as markup, and names and tokens come from anywhere.
    drawn = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for n, column in enumerate(columns):
        drawn.add_column(column, justify="left" if n == 0 else "right")
    for row in rows:
        drawn.add_row(*map(Text, row))
    Console().print(drawn)


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; the value is called with how much was done since the last call.

    Where standard error is no terminal, one line at the start and one at the end.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not sys.stderr.isatty():
        typer.echo(f"{title} ...", err=True)
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.advance(task, done)


def note(message: str) -> None:
    """A line for the person watching, on standard error."""
    typer.echo(message, err=True)
