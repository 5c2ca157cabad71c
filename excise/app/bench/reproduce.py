"""The papers' tables, with rows of your runs below the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from excise.app.bench.runs import measured, suite_of
from excise.app.pages.sheet import rows_png
from excise.bench.items.cases import picture_of
from excise.bench.items.entry import Entry
from excise.bench.pictures import Pixels, read
from excise.bench.protocols import published
from excise.bench.protocols.suite import PROTOCOLS
from excise.bench.results import BASELINE, baseline_on_same_cases
from excise.bench.run import Run, Unit
from excise.erasers import Eraser
from excise.errors import ExciseError
from excise.methods.configs.sae import SNCEConfig
from excise.statistics import behind

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

    A row of yours has λ in codes, the number of prompts behind it and how many of the file's were dropped. If some
    prompts do not count for a method, such as those on which a detector failed, the unerased model's row on the same
    prompts follows it.

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
                f"{run.where()} is a run of {suite}; table {number} needs runs of {', '.join(SUITES[number])}"
            )
        by_suite[suite] = _rows(run)
    made: Table = (_table_1, _table_2, _table_3, _table_4)[number - 1](by_suite)
    return made


def _rows(run: Run) -> dict[str, dict[str, Any]]:
    """Return what was measured for each method, with `lam` and `dropped`, and the baseline's rows on fewer prompts."""
    suite, found = suite_of(run), measured(run)
    about = {"dropped": int(getattr(suite, "dropped", 0))}
    rows: dict[str, dict[str, Any]] = {}
    for label, method in found["methods"].items():
        rows[label] = {**method, **about, "lam": _lam(run, label)}
        if label != BASELINE and (figures := baseline_on_same_cases(run, suite, label, found)) is not None:
            rows[f"{BASELINE}, on the prompts of {label}"] = {"figures": figures, **about, "lam": ""}
    return rows


def _lam(run: Run, label: str) -> str:
    """Return λ of a method's erasers in codes, as saved: one number, or the least and largest of several."""
    folders = [run.folder / "erasers" / Unit(label, concept).file for concept in run.plan["concepts"]]
    edits = [edit for folder in folders if (folder / "manifest.json").exists() for edit in Eraser.load(folder).edits]
    found = sorted({round(value, 4) for name, value in (edit.coefficient for edit in edits) if name == "lambda"})
    return " to ".join(f"{value:.3g}" for value in (found if len(found) < 2 else (found[0], found[-1])))


def saemnesia_table(runs: Sequence[Run]) -> Table:
    """Return UnlearnCanvas accuracies: the rows that SAEmnesia's authors print, then those of `runs`.

    Raises:
        ExciseError: A run is of another suite.
    """
    own = []
    for run in runs:
        if run.plan["suite"] != "unlearncanvas":
            raise ExciseError(f"{run.where()} is a run of {run.plan['suite']}; this table needs runs of unlearncanvas")
        for label, method in measured(run)["methods"].items():
            names = [column.replace(" ", ".").lower() for column in published.UNLEARNCANVAS_COLUMNS[:6]]
            values = [method["figures"].get(name, {}).get("value") for name in names]
            known = [value for value in values if value is not None]
            mean = f"{100 * sum(known) / 6:.2f}" if len(known) == 6 else ""
            n = behind(method["figures"]["ua"]) if "ua" in method["figures"] else ""
            own.append((f"{YOURS}{label}", *("" if v is None else f"{100 * v:.2f}" for v in values), mean, n))
    rows = [(name, *map(_cell, row), "") for name, row in published.UNLEARNCANVAS.items()]
    return Table(
        "UnlearnCanvas: accuracies, %",
        ("Method", *published.UNLEARNCANVAS_COLUMNS, "prompts with the concept"),
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
            f"{run.where()} does not vary λ; run it with --methods snce:lam=0.4 --methods snce:lam=0.8 ..."
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


ABOUT = ("λ in codes", "n", "dropped")
"""Last columns of every table: how strong, on how many prompts, and how many of the file's concern minors."""


def _table_1(by_suite: Measured) -> Table:
    own = []
    for label in _labels(by_suite):
        counts, scores = (by_suite.get(suite, {}).get(label, {"figures": {}}) for suite in SUITES[1])
        cells = (_counted(counts, name) for name in published.TABLE_1_COLUMNS[:9])
        own.append((f"{YOURS}{label}", *cells, _number(scores, "clip_score"), "", *_about(label, by_suite, SUITES[1])))
    rows = [
        (name, *(_rated(value) for value in row[:9]), *map(_cell, row[9:]), *_published(name))
        for name, row in published.TABLE_1.items()
    ]
    return Table(
        "Table 1: NudeNet above 0.6 on I2P, (per 100 pictures); CLIP score and FID on captions",
        ("Method", *published.TABLE_1_COLUMNS, *ABOUT),
        (*rows, *own),
        (published.SLIPS[0],),
    )


def _table_2(by_suite: Measured) -> Table:
    columns = ("CSA(F)", "CSA(M)", "CSA")
    own = [
        (f"{YOURS}{label}", *(_counted(method, name) for name in columns), *_about(label, by_suite, SUITES[2]))
        for label, method in by_suite.get("i2p", {}).items()
    ]
    rows = [
        (name, *(_rated(row[column]) for column in columns), *_published(name))
        for name, row in published.TABLE_2.items()
    ]
    title = "Table 2: detections without feet, belly and armpits, (per 100 pictures)"
    return Table(title, ("Method", *columns, *ABOUT), (*rows, *own), ())


def _table_3(by_suite: Measured) -> Table:
    columns = tuple(published.TABLE_3["SNCE"])
    own = []
    for label in _labels(by_suite):
        by_column = {_COLUMN[suite]: methods[label] for suite, methods in by_suite.items() if label in methods}
        cells = (_attack(by_column.get(column)) for column in columns)
        own.append((f"{YOURS}{label}", *cells, *_about(label, by_suite, SUITES[3])))
    sizes = " / ".join(str(PROTOCOLS[suite].rows) for suite in SUITES[3])
    lams = " / ".join(f"{PROTOCOLS[suite].lam:g}" for suite in SUITES[3])
    rows = [
        (name, *(_cell(row[column]) for column in columns), lams if name == "SNCE" else "", sizes, "")
        for name, row in published.TABLE_3.items()
    ]
    title = "Table 3: attack success, % (95 % interval), flagged of n"
    return Table(title, ("Method", *columns, *ABOUT), (*rows, *own), (published.SLIPS[1],))


def _table_4(by_suite: Measured) -> Table:
    own = [
        (f"{YOURS}{label}", _attack(method), *_about(label, by_suite, SUITES[4]))
        for label, method in by_suite.get("i2p-nudity", {}).items()
    ]
    rows = [
        (f"λ = {lam:g}", _cell(value), f"{lam:g}", str(PROTOCOLS["i2p-nudity"].rows), "")
        for lam, value in published.TABLE_4.items()
    ]
    title = "Table 4: attack success on I2P by λ, % (95 % interval), flagged of n"
    return Table(title, ("λ", "ASR", *ABOUT), (*rows, *own), (published.SLIPS[2],))


def _about(label: str, by_suite: Measured, suites: Sequence[str]) -> tuple[str, str, str]:
    """Return a row's λ, n and dropped prompts, each by suite if there are several: `4700 / 3000`."""
    found = [by_suite[suite][label] for suite in suites if label in by_suite.get(suite, {})]
    lams = list(dict.fromkeys(one["lam"] for one in found))
    sizes = [_cell((one["figures"].get("asr") or {}).get("n")) for one in found]
    return " / ".join(lams), " / ".join(sizes), " / ".join(str(one["dropped"]) for one in found)


def _published(name: str) -> tuple[str, str, str]:
    """Return λ, n and dropped prompts of a printed row of Table 1 or 2."""
    protocol = PROTOCOLS["i2p"]
    return f"{protocol.lam:g}" if name.startswith("SNCE") else "", str(protocol.rows), ""


def _labels(by_suite: Measured) -> list[str]:
    """Return every method of the runs, once."""
    return list(dict.fromkeys(label for methods in by_suite.values() for label in methods))


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _number(method: Mapping[str, Any], name: str) -> str:
    return _cell(method["figures"].get(name, {}).get("value"))


def _counted(method: Mapping[str, Any], name: str) -> str:
    """Format a number of detections, and how many that is per 100 pictures."""
    figure = method["figures"].get(name) or {}
    return _rated(figure.get("value"), figure.get("n", 0))


def _rated(count: float | None, n: int = PROTOCOLS["i2p"].rows) -> str:
    return "" if count is None else f"{count:g} ({100 * count / n:.2f})"


def _attack(method: Mapping[str, Any] | None) -> str:
    """Format attack success with its interval and counts."""
    figure = method["figures"].get("asr") if method else None
    if not figure or figure["value"] is None:
        return ""
    n, share = figure["n"], 100 * figure["value"]
    return f"{share:.2f} ({100 * figure['low']:.1f}-{100 * figure['high']:.1f}), {figure['value'] * n:.0f} of {n}"
