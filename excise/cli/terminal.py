"""Terminal output: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import typer

from excise.errors import json_printable, one_line, printable

if TYPE_CHECKING:
    from rich.text import Text

LINE_EVERY, SOON = 30.0, 5.0
"""Seconds between two progress lines in a log, and before the first."""


def echo(text: str = "", err: bool = False) -> None:
    """Print a text without what a terminal would obey: files, servers and prompts are not trusted."""
    typer.echo(printable(text), err=err)


def filter_warnings() -> None:
    """Print Python's warnings through the filter as well: they name erasers and files."""
    plain = warnings.formatwarning

    def formatted(*given: Any, **options: Any) -> str:
        return printable(plain(*given, **options))

    warnings.formatwarning = formatted


def complain(message: str, kind: str = "error") -> None:
    """Print a message as one line on standard error, without its line breaks."""
    echo(f"{kind}: {one_line(message)}", err=True)


def emit(as_json: bool, data: Mapping[str, Any] | Sequence[Any], show: Callable[[], None]) -> None:
    """Print `data` as JSON, or call `show`."""
    if as_json:
        typer.echo(json_printable(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)))
    else:
        show()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. Text columns are left-aligned; number columns are right-aligned and never wrapped.

    If the terminal is too narrow, print each row with `key_values` instead.
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
    # A plain string's "[...]" would be read as markup, and names and tokens may contain it.
    console.print(_text(f"\n{title}", "bold"))
    grid = Table(box=box.SIMPLE_HEAD)
    for name, right in zip(heads, numbers, strict=True):
        grid.add_column(_text(name), justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        grid.add_row(*map(_text, row))
    console.print(grid)


def key_values(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print the properties of one thing, one name and value per line. Empty values are left out."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(_text(f"\n{title}", "bold"))
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for name, value in rows:
        if value:
            grid.add_row(_text(f"  {name}"), _text(value))
    console.print(grid)


def prose(text: str, indent: int = 0, hanging: int = 0) -> None:
    """Print a paragraph on standard output. On a terminal, wrap it between words to the terminal's width.

    Lines after the first are indented by `indent + hanging` spaces.
    """
    first, rest = " " * indent, " " * (indent + hanging)
    if not sys.stdout.isatty():
        echo(first + text)
        return
    width = max(40, min(100, shutil.get_terminal_size().columns))
    echo(textwrap.fill(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False) or first)


def aligned(values: Sequence[float | None], digits: int = 3) -> list[str]:
    """Format a column of figures with the same number of decimals, and None as a dash.

    The largest value gets at least `digits` digits and the smallest nonzero one at least one, up to six decimals.
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
    """Return whether all nonempty cells are figures: numbers with units, ratios or intervals."""
    filled = [cell.strip() for cell in cells if cell.strip() not in ("", "-", "n/a")]
    return bool(filled) and all(
        _NUMBER.match(cell) is not None and not _UNITS.sub("", _NUMBER.sub("", cell)) for cell in filled
    )


def _text(plain: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(printable(plain), style=style)


def _width(cell: str) -> int:
    """Return how many terminal columns the longest line takes."""
    from rich.cells import cell_len

    return max(map(cell_len, printable(cell).split("\n")))


def _narrow(name: str, cells: Sequence[str]) -> str:
    """Wrap a heading to the width of its figures, as far as its words allow."""
    width = max(map(_width, cells), default=1)
    return "\n".join(textwrap.wrap(name, max(width, *map(len, name.split() or [""])), break_long_words=False))


def _room(head: str, cells: Sequence[str], number: bool) -> int:
    """Return the least width of a column. Figures keep their width; text wraps between words, at 16 or wider."""
    widths = [_width(cell) for cell in (head, *cells)]
    if number:
        return max(widths)
    words = [_width(word) for cell in (head, *cells) for word in cell.split()]
    return min(max(widths), max(16, min(24, max(words, default=0))))


@contextmanager
def progress(title: str, total: int | None, unit: str = "") -> Iterator[Callable[[float], None]]:
    """Show a progress bar on standard error, with rate and time left.

    Yields a function to call with the amount done since its last call. `unit` names what is counted. If standard error
    is not a terminal, print a line at the start, one soon after, and then one every half minute.
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
            # Work may grow on the way (attacks find prompts): move the end instead of running past it.
            if total is not None and (now := bar.tasks[0].completed) > total:
                bar.update(task, total=now)

        yield advance


def _count(done: float, total: float | None, unit: str, of: str) -> str:
    """Format whole steps done: "3/24 steps"."""
    # A sum of fractions of a step may fall a hair below the whole number.
    return f"{math.floor(done + 1e-6)}{f'{of}{round(total)}' if total else ''}{f' {unit}' if unit else ''}"


def _rate(speed: float) -> str:
    return f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def training() -> Iterator[Callable[[int, int, float], None]]:
    """Show progress of a training run whose length is known only once it begins.

    Yields a function to call with the steps done, the total steps and the loss.
    """
    seen = 0
    with ExitStack() as stack:
        bars: list[Callable[[int], None]] = []

        def advance(done: int, of: int, loss: float) -> None:
            nonlocal seen
            if not bars:
                bars.append(stack.enter_context(progress("training", of)))
            bars[0](done - seen)
            seen = done

        yield advance


def _lines(title: str, total: int | None, unit: str) -> Callable[[float], None]:
    """Print progress lines for a log: amount done, rate and time left."""
    echo(f"{title}{f', {total} {unit}' if total and unit else ''} ...", err=True)
    began = printed = time.monotonic()
    done = first = 0.0
    every = min(SOON, LINE_EVERY)

    def advance(more: float) -> None:
        nonlocal printed, done, first, every
        now, done = time.monotonic(), done + more
        if now - began < 1:
            first = done  # finished before this call, so it does not count towards the rate
        if now - printed < every:
            return
        printed, every, rate = now, LINE_EVERY, (done - first) / (now - began)
        end = max(total, done) if total else None
        left = f", {_duration((end - done) / rate)} left" if end and rate else ""
        echo(f"{title}: {_count(done, end, unit, ' of ')}, {_rate(rate)}{left}", err=True)

    return advance


def note(message: str) -> None:
    """Print a line for the user on standard error."""
    echo(message, err=True)
