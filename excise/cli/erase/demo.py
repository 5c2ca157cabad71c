"""`excise demo`: erase a concept from the bundled model, start to finish."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excise.cli import bounds
from excise.cli.options import Json, Steps
from excise.cli.terminal import echo, note, progress, table
from excise.errors import printable
from excise.outputs import check_resumed

if TYPE_CHECKING:
    from excise.app.erase.finding import Findings
    from excise.statistics import Estimate


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise demo --concept cat --out demo-cat")(demo)


def demo(
    concept: Annotated[str, typer.Option("--concept", help="An object that the bundled model knows.")] = "gun",
    out: Annotated[Path, typer.Option("--out", help="Folder for the report, the picture grid and the figures.")] = Path(
        "demo"
    ),
    n: Annotated[int, typer.Option("--n", help="Prompts per family; seeds count from 0.", **bounds.FAMILY)] = 24,
    steps: Steps = 20,
    lam: Annotated[
        float | None,
        typer.Option("--lam", help="Erasure strength λ. Default: the method's.", **bounds.POSITIVE_LAMBDA),
    ] = None,
    train_sae: Annotated[bool, typer.Option("--train-sae", help="Train the SAE first (under two minutes).")] = False,
    json: Json = False,
) -> None:
    """Erase a concept from the bundled model, measure the effect, and write a report."""
    check_resumed(out)
    from excise.app.demo.demo import DemoConfig, run

    result = run(DemoConfig(concept, out, n, steps, lam, train_sae), _Screen(quiet=json))
    if json:
        from json import dumps

        echo(dumps(result, indent=2))
    else:
        echo(f"\nDone in {result['seconds']:.0f} s. Open {out / 'report.html'}.")


class _Screen:
    """Terminal output of the demo. With `quiet` (JSON), steps go to standard error and tables are left out."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._steps = quiet, 0

    def step(self, title: str) -> None:
        self._steps += 1
        if self._quiet:
            note(f"{self._steps}. {title}")
            return
        from rich.console import Console
        from rich.text import Text

        Console(highlight=False).print(Text(printable(f"\n{self._steps}. {title}"), style="bold"))

    def say(self, text: str) -> None:
        if not self._quiet:
            echo(f"   {text}")

    def ranking(self, found: Findings) -> None:
        if not self._quiet:
            from excise.cli.erase.find import show_ranking

            show_ranking(found.concept.name, found.found.site.key, found.rows[:5])
            for warning in found.warnings:
                echo(f"   warning: {warning}")

    def figures(self, measured: dict[str, Estimate], further: dict[str, Estimate]) -> None:
        if self._quiet:
            return
        from excise.app.demo.report import BARS, FURTHER, percent

        rows = []
        for name, figure in measured.items():
            label, bar, _ = BARS[name]
            limit = f"{bar.limit} {percent(name, bar.bound).lstrip('+')}"
            cells = (percent(name, figure.value), _interval(name, figure), str(figure.n), limit)
            rows.append((label, *cells, bar.standing(figure) or "nothing to count"))
        table("Figures", ("share", "value", "95 % interval", "n", "bar", ""), rows)
        more = [(FURTHER[k], percent(k, f.value), _interval(k, f), str(f.n)) for k, f in further.items()]
        table("Further figures", ("share", "value", "95 % interval", "n"), more)

    def working(self, title: str, total: int | None, unit: str = "") -> AbstractContextManager[Callable[[float], None]]:
        return progress(title, total, unit)


def _interval(name: str, figure: Estimate) -> str:
    from excise.app.demo.report import percent

    return f"{percent(name, figure.low)} to {percent(name, figure.high)}"
