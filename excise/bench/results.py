"""Results: what a run has measured so far, counted anew from its records and pictures every time."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping
from io import StringIO
from typing import Any

from excise.bench.run import Record, Run, Unit
from excise.bench.statistics import Figure
from excise.bench.suite import Picture, Suite
from excise.bench.worker import all_cases, picture_of

BASELINE = "none"


def results(run: Run, suite: Suite) -> dict[str, Any]:
    """As json: the plan, and by method its figures over concepts, by concept, cost, failures and what is missing.

    Every case is set beside the same case of the unerased model; cases that one of the two lacks, or on which a
    detector failed, are counted as `missing` and `errors` and stand in no figure.
    """
    records: dict[str, dict[str, Record]] = {}
    for record in run.records():
        records.setdefault(record["method"], {})[record["case"]] = record
    base = records.get(BASELINE, {})
    told = {key: value for key, value in run.plan.items() if key != "schema"}
    units = [Unit(label, concept) for label in run.plan["methods"] for concept in run.plan["concepts"]]
    return {
        **told,
        "disclosed": dict(suite.disclosed),
        "drawn_with": sorted({fit["drawn_with"] for fit in (_fit(run, unit) for unit in units) if "drawn_with" in fit}),
        "methods": {label: _method(run, suite, label, records.get(label, {}), base) for label in run.plan["methods"]},
    }


def _method(
    run: Run, suite: Suite, label: str, own: Mapping[str, Record], base: Mapping[str, Record]
) -> dict[str, Any]:
    pictures: dict[str, list[Picture]] = {}
    errors, missing, refused, costs = [], 0, {}, []
    for concept in run.plan["concepts"]:
        unit = Unit(label, concept)
        fit = _fit(run, unit)
        if "refused" in fit:
            refused[concept] = fit["refused"]
            continue
        costs.append(fit)
        pictures[concept] = []
        for case in all_cases(run, suite, unit):
            mine, plain = own.get(case.id), base.get(case.id)
            if mine is None or plain is None:
                missing += 1
            elif "error" in mine or "error" in plain:
                errors.append({"case": case.id, "error": mine.get("error") or plain["error"]})
            else:
                paths = [picture_of(run, Unit(name, concept), case.id) for name in (label, BASELINE)]
                same = mine["picture"] == plain["picture"]
                pictures[concept].append(Picture(case, mine["seen"], plain["seen"], same, *paths))
    figures = suite.over_concepts({concept: some for concept, some in pictures.items() if some})
    return {
        "figures": {name: figure.to_json() for name, figure in figures.items()},
        "concepts": {
            concept: {name: figure and figure.to_json() for name, figure in suite.of_concept(some).items()}
            for concept, some in pictures.items()
            if some
        },
        "cost": _cost(costs, own, base),
        "pictures": len(own),
        "missing": missing,
        "errors": errors,
        "refused": refused,
    }


def _cost(fits: list[dict[str, Any]], own: Mapping[str, Record], base: Mapping[str, Record]) -> dict[str, Any]:
    """Seconds to erase a concept, seconds added to a picture, bytes of the artefact, peak memory: medians."""
    both = own.keys() & base.keys()
    added = [own[case]["seconds"] - base[case]["seconds"] for case in both]
    fitted = [fit for fit in fits if fit]
    return {
        "erase_seconds": _median([fit["seconds"] for fit in fitted]),
        "added_seconds": _median(added),
        "bytes": _median([fit["bytes"] for fit in fitted]),
        "peak_memory": max((fit["peak_memory"] for fit in fitted if fit["peak_memory"]), default=None),
    }


def _median(values: list[float]) -> float | None:
    return round(statistics.median(values), 4) if values else None


def _fit(run: Run, unit: Unit) -> dict[str, Any]:
    path = run.folder / "fits" / f"{unit.file}.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def table(measured: Mapping[str, Any]) -> str:
    """`results.csv`: method, concept ("" for the mean over concepts, and for costs), figure, value, low, high, n."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("method", "concept", "figure", *Figure._fields))
    for label, method in measured["methods"].items():
        for concept, figures in {"": method["figures"], **method["concepts"]}.items():
            for name, figure in figures.items():
                cells = [figure[field] for field in Figure._fields] if figure else [None] * len(Figure._fields)
                writer.writerow((label, concept, name, *("" if cell is None else cell for cell in cells)))
        for name, value in method["cost"].items():
            writer.writerow((label, "", name, "" if value is None else value, "", "", ""))
    return out.getvalue()
