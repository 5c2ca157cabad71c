"""Printing: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.text import Text

LINE_EVERY, SOON = 30.0, 5.0
"""Seconds between two lines of progress in a log, and before the first."""


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
    """Print a table: columns of text left-aligned, columns of numbers right-aligned and never broken.

    Where the terminal is too narrow for that, each row is printed as `key_values` are.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    cells = [[row[n] for row in rows] for n in range(len(columns))]
    numbers = [_is_numeric(column) for column in cells]
    heads = list(columns)
    for narrow in (False, True):
        if narrow:
            heads = [_narrow(n, c) if right else n for n, c, right in zip(columns, cells, numbers, strict=True)]
        if fits := sum(map(_room, heads, cells, numbers)) + 3 * len(columns) + 1 <= console.width:
            break
    if not fits:
        for row in rows:
            key_values(f"{title}: {row[0]}" if row[0] else title, list(zip(columns, row, strict=True))[1:])
        return
    # Text, as a plain string's "[...]" would be read as markup, and names and tokens come from anywhere.
    console.print(_text(f"\n{title}", "bold"))
    drawn = Table(box=box.SIMPLE_HEAD)
    for name, right in zip(heads, numbers, strict=True):
        drawn.add_column(_text(name), justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        drawn.add_row(*map(_text, row))
    console.print(drawn)


def key_values(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print what belongs to one thing: a name a line, its value beside it, those without a value left out."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(_text(f"\n{title}", "bold"))
    drawn = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    drawn.add_column(no_wrap=True, style="dim")
    drawn.add_column(overflow="fold")
    for name, value in rows:
        if value:
            drawn.add_row(_text(f"  {name}"), _text(value))
    console.print(drawn)


def prose(text: str, indent: int = 0, hanging: int = 0) -> None:
    """Print a paragraph on standard output, wrapped at words to the terminal's width where that is one.

    `hanging` is how much further lines after the first are indented.
    """
    first, rest = " " * indent, " " * (indent + hanging)
    if not sys.stdout.isatty():
        typer.echo(first + text)
        return
    width = max(40, min(100, shutil.get_terminal_size().columns))
    typer.echo(
        textwrap.fill(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False) or first
    )


def aligned(values: Sequence[float | None], digits: int = 3) -> list[str]:
    """A column of figures with as many decimals for all, a dash for None.

    The largest shows `digits` digits at least, the smallest that is not 0 one; six decimals are the most.
    """
    sizes = [abs(value) for value in values if value]
    if not sizes:
        return ["-" if value is None else "0" for value in values]
    first, last = math.floor(math.log10(max(sizes))), math.floor(math.log10(min(sizes)))
    places = min(6, max(0, digits - 1 - first, -last))
    return ["-" if value is None else f"{value:.{places}f}" for value in values]


_NUMBER = re.compile(r"[<>=≤≥±~+\-−]?\s*[\d.,]*\d[\d.,]*(e[+-]?\d+)?")
_UNITS = re.compile(r"%|×|pts|ms|s|min|h|[kMG]i?B|B|/s|to|of|–|-|−|\+|/|\(|\)|,|;|\s")


def _is_numeric(cells: Sequence[str]) -> bool:
    """Whether all cells are figures, with units, shares of, or intervals; or say that there is none."""
    told = [cell.strip() for cell in cells if cell.strip() not in ("", "-", "n/a")]
    return bool(told) and all(
        _NUMBER.match(cell) is not None and not _UNITS.sub("", _NUMBER.sub("", cell)) for cell in told
    )


def _text(plain: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(plain, style=style)


def _width(cell: str) -> int:
    """Columns of a terminal that the longest line takes."""
    from rich.cells import cell_len

    return max(map(cell_len, cell.split("\n")))


def _narrow(name: str, cells: Sequence[str]) -> str:
    """A heading over as many lines as it takes to be no wider than its figures, where its words allow that."""
    width = max(map(_width, cells), default=1)
    return "\n".join(textwrap.wrap(name, max(width, *map(len, name.split() or [""])), break_long_words=False))


def _room(head: str, cells: Sequence[str], number: bool) -> int:
    """How narrow a column may become: figures keep their width, text is broken at words, but not below 16."""
    widths = [_width(cell) for cell in (head, *cells)]
    if number:
        return max(widths)
    words = [_width(word) for cell in (head, *cells) for word in cell.split()]
    return min(max(widths), max(16, min(24, max(words, default=0))))


@contextmanager
def progress(title: str, total: int | None, unit: str = "") -> Iterator[Callable[[float], None]]:
    """A progress bar on standard error with rate and time left; the value is called with how much was done since.

    `unit` says what is counted. Where standard error is no terminal, a line at the start, soon after, and every half
    minute.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TimeRemainingColumn

    if not sys.stderr.isatty():
        yield _lines(title, total, unit)
        return

    class Count(ProgressColumn):
        def render(self, task: Task) -> Text:
            return _text(_count(task.completed, task.total, unit, "/"))

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return _text(_rate(task.speed) if task.speed else "")

    columns = ("{task.description}", BarColumn(), Count(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)

        def advance(done: float) -> None:
            bar.advance(task, done)
            # More than was foreseen (attacks find prompts on the way) moves the end, not past it.
            if total is not None and (now := bar.tasks[0].completed) > total:
                bar.update(task, total=now)

        yield advance


def _count(done: float, total: float | None, unit: str, of: str) -> str:
    """Shares of a step are not counted: "3/24 steps"."""
    # A sum of shares may lie a hair below what it is.
    return f"{math.floor(done + 1e-6)}{f'{of}{round(total)}' if total else ''}{f' {unit}' if unit else ''}"


def _rate(speed: float) -> str:
    return f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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


def _lines(title: str, total: int | None, unit: str) -> Callable[[float], None]:
    """Progress for a log: how much is done, how fast, and how long the rest will take."""
    typer.echo(f"{title}{f', {total} {unit}' if total and unit else ''} ...", err=True)
    began = told = time.monotonic()
    done = first = 0.0
    every = min(SOON, LINE_EVERY)

    def advance(more: float) -> None:
        nonlocal told, done, first, every
        now, done = time.monotonic(), done + more
        if now - began < 1:
            first = done  # what was there before: it says nothing of the rate
        if now - told < every:
            return
        told, every, rate = now, LINE_EVERY, (done - first) / (now - began)
        end = max(total, done) if total else None
        left = f", {_duration((end - done) / rate)} left" if end and rate else ""
        typer.echo(f"{title}: {_count(done, end, unit, ' of ')}, {_rate(rate)}{left}", err=True)

    return advance


def note(message: str) -> None:
    """A line for the person watching, on standard error."""
    typer.echo(message, err=True)
