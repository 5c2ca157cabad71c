"""Results: what a run has measured so far, counted anew from its records and pictures every time."""

from __future__ import annotations

import csv
import json
import statistics
from collections import Counter
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from excise.bench.pictures import read
from excise.bench.run import Record, Run, Unit
from excise.bench.statistics import Estimate
from excise.bench.suite import Picture, Suite
from excise.bench.worker import all_cases, picture_of
from excise.concepts.concept import mentioned
from excise.drawn import fault

BASELINE = "none"


def results(run: Run, suite: Suite) -> dict[str, Any]:
    """As json: the plan, and by method its figures over concepts, by concept, cost, failures and what is missing.

    Every case is set beside the same case of the unerased model. Cases that one of the two lacks, on which a detector
    failed, or whose picture is broken on either side, are counted as `missing`, `errors` and `broken` and stand in no
    figure. `cut` is how many prompts are longer than the model reads. Cases whose prompt names the concept only past
    that, `unread`, count as not erased under every method, the baseline among them: nothing was taken out of them.
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
    errors, broken, unread, missing, refused, costs, weak = [], [], [], 0, {}, [], {}
    harmless = {family.name for family in suite.families if family.role == "keep"}
    for concept in run.plan["concepts"]:
        unit = Unit(label, concept)
        fit = _fit(run, unit)
        if "refused" in fit:
            refused[concept] = fit["refused"]
            continue
        costs.append(fit)
        if why := fit.get("weak"):
            weak[concept] = why
        pictures[concept] = []
        for case in all_cases(run, suite, unit):
            mine, plain = own.get(case.id), base.get(case.id)
            if mine is None or plain is None:
                missing += 1
                continue
            paths = [picture_of(run, Unit(name, concept), case.id) for name in (label, BASELINE)]
            faults = [fault_of(record, path) for record, path in zip((mine, plain), paths, strict=True)]
            if "error" in mine or "error" in plain:
                errors.append({"case": case.id, "error": mine.get("error") or plain["error"]})
            elif any(faults):
                by = label if faults[0] else BASELINE
                broken.append({"case": case.id, "by": by, "fault": faults[0] or faults[1]})
            else:
                same, seen = mine["picture"] == plain["picture"], mine["seen"]
                if case.family not in harmless and (
                    lost := _unread(suite, concept, mine) or _unread(suite, concept, plain)
                ):
                    unread.append({"case": case.id, "lost": lost})
                    seen = _not_erased(seen)
                pictures[concept].append(Picture(case, seen, plain["seen"], same, *paths))
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
        "broken": broken,
        "unread": unread,
        "cut": sum("lost" in record for record in own.values()),
        "refused": refused,
        "weak": weak,
        "failed": {unit.concept: said[-1] for unit, said in run.errors().items() if unit.method == label},
    }


def _unread(suite: Suite, concept: str, record: Record) -> str | None:
    """The lost end of a record's prompt, where the concept is named there and nowhere in what the model reads."""
    if "lost" not in record:
        return None
    prompt, lost = str(record["prompt"]), str(record["lost"])
    mentions = suite.concept(concept).mentions
    # A mention that the cut goes through is in neither part, and in the whole.
    named, read = (mentioned(text, mentions) for text in (prompt, prompt.removesuffix(lost)))
    return lost if named and not read else None


def _not_erased(seen: Mapping[str, Any]) -> dict[str, Any]:
    """What the judges see in a picture, with the target in it by every one of them."""
    second = {"second": seen["second"] | {"target": True}} if "second" in seen else {}
    return {**seen, **second, "target": True}


def fault_of(record: Mapping[str, Any], picture: Path) -> str | None:
    """What is wrong with a recorded picture; None where it is sound. Records of before this was written down are
    judged by the picture's file: whether it has one colour."""
    if "fault" in record:
        return None if record["fault"] is None else str(record["fault"])
    return fault(read(picture)) if picture.exists() else None


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
    """`results.csv`: method, concept ("" for the mean over concepts, for costs, and for numbers of prompts that are
    cut and of pictures that stand in no figure), figure, value, low, high, n, pictures."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("method", "concept", "figure", *Estimate._fields))
    for label, method in measured["methods"].items():
        for concept, figures in {"": method["figures"], **method["concepts"]}.items():
            for name, figure in figures.items():
                cells = [figure.get(field) if figure else None for field in Estimate._fields]
                writer.writerow((label, concept, name, *("" if cell is None else cell for cell in cells)))
        for name, value in method["cost"].items():
            writer.writerow((label, "", name, "" if value is None else value, *[""] * 4))
        if method["cut"]:
            writer.writerow((label, "", "prompts cut", method["cut"], *[""] * 4))
        if method["unread"]:
            writer.writerow((label, "", "concept not read", len(method["unread"]), *[""] * 4))
        for name, count in outside(method).items():
            writer.writerow((label, "", name, count, *[""] * 4))
    return out.getvalue()


def outside(method: Mapping[str, Any]) -> dict[str, int]:
    """How many pictures of a method stand in no figure, by reason: `missing`, `errors`, `broken` by fault."""
    counts = {"missing": method["missing"], "errors": len(method["errors"])}
    return counts | {f"broken: {kind}": n for kind, n in sorted(Counter(b["fault"] for b in method["broken"]).items())}
