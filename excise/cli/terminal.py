"""Printing: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import typer

LINE_EVERY = 30.0
"""Seconds between two lines of progress in a log."""


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
    """A progress bar on standard error with rate and time left; the value is called with how much was done since.

    Where standard error is no terminal, a line at the start and one every half minute.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
    from rich.text import Text

    if not sys.stderr.isatty():
        yield _lines(title, total)
        return

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_rate(task.speed) if task.speed else "")

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)

        def advance(done: int) -> None:
            bar.advance(task, done)
            # More than was foreseen (attacks find prompts on the way) moves the end, not past it.
            if total is not None and (now := bar.tasks[0].completed) > total:
                bar.update(task, total=now)

        yield advance


def _rate(speed: float) -> str:
    return f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s"


@contextmanager
def training() -> Iterator[Callable[[int, int, float], None]]:
    """Progress of a training whose length is known once it begins: to be told how many steps are done, of how many."""
    seen = 0
    with ExitStack() as stack:
        bars: list[Callable[[int], None]] = []

        def tell(done: int, of: int, loss: float) -> None:
            nonlocal seen
            if not bars:
                bars.append(stack.enter_context(progress("training", of)))
            bars[0](done - seen)
            seen = done

        yield tell


def _lines(title: str, total: int | None) -> Callable[[int], None]:
    """Progress for a log: how much is done, how fast, and how long the rest will take."""
    typer.echo(f"{title} ...", err=True)
    began = told = time.monotonic()
    done = first = 0

    def advance(more: int) -> None:
        nonlocal told, done, first
        now, done = time.monotonic(), done + more
        if now - began < 1:
            first = done  # what was there before: it says nothing of the rate
        if now - told < LINE_EVERY:
            return
        told, rate = now, (done - first) / (now - began)
        end = max(total, done) if total else None
        left = f", {(end - done) / rate / 60:.0f} min left" if end and rate else ""
        typer.echo(f"{title}: {done}{f' of {end}' if end else ''}, {_rate(rate)}{left}", err=True)

    return advance


def note(message: str) -> None:
    """A line for the person watching, on standard error."""
    typer.echo(message, err=True)
