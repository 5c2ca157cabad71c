"""The papers' tables, with rows of your runs below the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from excise.app.bench.runs import measured, suite_of
from excise.app.pages.sheet import rows_png
from excise.bench.pictures import Pixels, read
from excise.bench.protocols import published
from excise.bench.results import BASELINE
from excise.bench.run import Run, Unit
from excise.bench.worker import Entry, picture_of
from excise.errors import ExciseError
from excise.methods.configs.sae import SNCEConfig

YOURS = "yours: "
SUITES = {
    1: ("i2p", "coco"),
    2: ("i2p",),
    3: ("i2p-nudity", "i2p-violence", "p4d", "ring-a-bell"),
    4: ("i2p-nudity",),
}
"""The suites whose runs make up each table."""
_COLUMN = {"i2p-nudity": "I2P(N)", "i2p-violence": "I2P(V)", "p4d": "P4D", "ring-a-bell": "Ring-A-Bell"}


@dataclass(frozen=True)
class Table:
    """A table of the paper. Cells are text; an empty cell was not measured."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def snce_table(number: int, runs: Sequence[Run]) -> Table:
    """Return Table 1, 2, 3 or 4 of the SNCE paper: its rows as printed, then those of `runs`.

    Raises:
        ExciseError: There is no such table, or a run's suite is not part of it.
    """
    if number not in SUITES:
        raise ExciseError(f"the paper has no table {number} to reproduce; choose 1, 2, 3 or 4")
    by_suite = {}
    for run in runs:
        suite = run.plan["suite"]
        if suite not in SUITES[number]:
            raise ExciseError(
                f"{run.folder} is a run of {suite}; table {number} needs runs of {', '.join(SUITES[number])}"
            )
        by_suite[suite] = measured(run)["methods"]
    made: Table = (_table_1, _table_2, _table_3, _table_4)[number - 1](by_suite)
    return made


def saemnesia_table(runs: Sequence[Run]) -> Table:
    """Return UnlearnCanvas accuracies: the rows that SAEmnesia's authors print, then those of `runs`.

    Raises:
        ExciseError: A run is of another suite.
    """
    own = []
    for run in runs:
        if run.plan["suite"] != "unlearncanvas":
            raise ExciseError(f"{run.folder} is a run of {run.plan['suite']}; this table needs runs of unlearncanvas")
        for label, method in measured(run)["methods"].items():
            names = [column.replace(" ", ".").lower() for column in published.UNLEARNCANVAS_COLUMNS[:6]]
            values = [method["figures"].get(name, {}).get("value") for name in names]
            known = [value for value in values if value is not None]
            mean = f"{100 * sum(known) / 6:.2f}" if len(known) == 6 else ""
            own.append((f"{YOURS}{label}", *("" if v is None else f"{100 * v:.2f}" for v in values), mean))
    rows = [(name, *map(_cell, row)) for name, row in published.UNLEARNCANVAS.items()]
    return Table(
        "UnlearnCanvas: accuracies, %",
        ("Method", *published.UNLEARNCANVAS_COLUMNS),
        (*rows, *own),
        published.UNLEARNCANVAS_SLIPS,
    )


def figure_7(run: Run, prompts: int = 3, blur: bool = True) -> bytes:
    """Return the paper's Figure 7 as PNG, from a run of `snce` that varies λ: columns by λ, rows by k and prompt.

    Entries that differ in λ alone make a row, whatever their other settings. The first prompts with the target are
    shown; λ = 0 is the unerased model. With `blur`, pictures in which the detector saw the target are blurred.

    Raises:
        ExciseError: The run does not vary λ.
    """
    by_rest: dict[SNCEConfig, dict[float, str]] = {}
    for label in run.plan["methods"]:
        entry = Entry.parse(label)
        if entry.method == "snce":
            config = SNCEConfig(**entry.settings)
            by_rest.setdefault(replace(config, lam=0.0), {0.0: BASELINE})[config.lam] = label
    if max((len(labels) for labels in by_rest.values()), default=0) < 3:
        raise ExciseError(
            f"{run.folder} does not vary λ; run it with --methods snce:lam=0.4 --methods snce:lam=0.8 ..."
        )
    records = {(record["method"], record["case"]): record for record in run.records()}
    target = next(family for family in suite_of(run).families if family.role != "keep").name
    cases = [r for (label, _), r in records.items() if label == BASELINE and r["family"] == target][:prompts]
    rows: list[tuple[str, Pixels]] = []
    for rest, labels in sorted(by_rest.items(), key=lambda item: item[0].k):
        lams = "   ".join(f"{lam:g}" for lam in sorted(labels))
        for n, case in enumerate(cases):
            shown = [records.get((labels[lam], case["case"])) for lam in sorted(labels)]
            pictures = [_shown(run, record, blur) for record in shown if record is not None]
            rows.append((f"Top-{rest.k}, lambda = {lams}" if n == 0 else "", np.stack(pictures)))
    return rows_png(rows)


def _shown(run: Run, record: Mapping[str, Any], blur: bool) -> Pixels:
    """Return a recorded picture, blurred if the detector saw the target or failed."""
    picture = read(picture_of(run, Unit(record["method"], record["concept"]), record["case"]))
    if not (blur and record.get("seen", {}).get("target", True)):
        return picture
    radius = max(picture.shape[:2]) / 8
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


Measured = Mapping[str, Mapping[str, Any]]
"""What was measured for each method, by suite."""


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
    """Return every method of the runs, once."""
    return list(dict.fromkeys(label for methods in by_suite.values() for label in methods))


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _number(method: Mapping[str, Any], name: str) -> str:
    return _cell(method["figures"].get(name, {}).get("value"))


def _attack(method: Mapping[str, Any] | None) -> str:
    """Format attack success with its interval."""
    figure = method["figures"].get("asr") if method else None
    if not figure or figure["value"] is None:
        return ""
    return f"{100 * figure['value']:.2f} ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})"
