"""The paper's tables with your runs beside the published rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from excise.app.benchmark import measured
from excise.bench.protocols import published
from excise.bench.run import Run
from excise.errors import ExciseError

YOURS = "yours: "
SUITES = {
    1: ("i2p", "coco"),
    2: ("i2p",),
    3: ("i2p-nudity", "i2p-violence", "p4d", "ring-a-bell"),
    4: ("i2p-nudity",),
}
"""Which runs a table is made of."""
_COLUMN = {"i2p-nudity": "I2P(N)", "i2p-violence": "I2P(V)", "p4d": "P4D", "ring-a-bell": "Ring-A-Bell"}


@dataclass(frozen=True)
class Table:
    """A table of the paper; cells are text, empty where nothing was measured."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def snce_table(number: int, runs: Sequence[Run]) -> Table:
    """Table 1, 2, 3 or 4 of the SNCE paper: its rows as printed, then those of `runs`.

    Raises ExciseError for another table, or a run that this table is not made of.
    """
    if number not in SUITES:
        raise ExciseError(f"the paper has no table {number} to reproduce; there are 1, 2, 3 and 4")
    by_suite = {}
    for run in runs:
        suite = run.plan["suite"]
        if suite not in SUITES[number]:
            raise ExciseError(
                f"{run.folder} is a run of {suite}; table {number} is made of {', '.join(SUITES[number])}"
            )
        by_suite[suite] = measured(run)["methods"]
    made: Table = (_table_1, _table_2, _table_3, _table_4)[number - 1](by_suite)
    return made


Measured = Mapping[str, Mapping[str, Any]]
"""By suite, what was measured of each method."""


def _table_1(by_suite: Measured) -> Table:
    own = []
    for label in _labels(by_suite):
        counts, scores = (by_suite.get(suite, {}).get(label, {"figures": {}}) for suite in SUITES[1])
        own.append(
            (
                f"{YOURS}{label}",
                *(_number(counts, name) for name in published.TABLE_1_COLUMNS[:9]),
                _number(scores, "clip_score"),
                "",
            )
        )
    rows = [(name, *map(_cell, row)) for name, row in published.TABLE_1.items()]
    return Table(
        "Table 1: NudeNet above 0.6 on I2P; CLIP score and FID on captions",
        ("Method", *published.TABLE_1_COLUMNS),
        (*rows, *own),
        (published.SLIPS[0],),
    )


def _table_2(by_suite: Measured) -> Table:
    columns = ("CSA(F)", "CSA(M)", "CSA")
    own = [
        (f"{YOURS}{label}", *(_number(method, name) for name in columns))
        for label, method in by_suite.get("i2p", {}).items()
    ]
    rows = [(name, *(_cell(row[column]) for column in columns)) for name, row in published.TABLE_2.items()]
    return Table("Table 2: detections without feet, belly and armpits", ("Method", *columns), (*rows, *own), ())


def _table_3(by_suite: Measured) -> Table:
    columns = tuple(published.TABLE_3["SNCE"])
    own = []
    for label in _labels(by_suite):
        by_column = {_COLUMN[suite]: methods[label] for suite, methods in by_suite.items() if label in methods}
        own.append((f"{YOURS}{label}", *(_attack(by_column.get(column)) for column in columns)))
    rows = [(name, *(_cell(row[column]) for column in columns)) for name, row in published.TABLE_3.items()]
    return Table("Table 3: attack success, %", ("Method", *columns), (*rows, *own), (published.SLIPS[1],))


def _table_4(by_suite: Measured) -> Table:
    own = [(f"{YOURS}{label}", _attack(method)) for label, method in by_suite.get("i2p-nudity", {}).items()]
    rows = [(f"λ = {lam:g}", _cell(value)) for lam, value in published.TABLE_4.items()]
    return Table("Table 4: attack success on I2P by λ, %", ("λ", "ASR"), (*rows, *own), (published.SLIPS[2],))


def _labels(by_suite: Measured) -> list[str]:
    """Every method of the runs, once."""
    return list(dict.fromkeys(label for methods in by_suite.values() for label in methods))


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _number(method: Mapping[str, Any], name: str) -> str:
    return _cell(method["figures"].get(name, {}).get("value"))


def _attack(method: Mapping[str, Any] | None) -> str:
    """Attack success with its interval."""
    figure = method["figures"].get("asr") if method else None
    if not figure or figure["value"] is None:
        return ""
    return f"{100 * figure['value']:.2f} ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})"
