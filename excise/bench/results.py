"""Results: what a run has measured so far, computed from its records and pictures on every call."""

from __future__ import annotations

import csv
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from excise.bench.items.cases import all_cases, checked_file, picture_of
from excise.bench.items.drawn_with import unlike
from excise.bench.items.reusing import is_disproved
from excise.bench.pictures import read
from excise.bench.run import BASELINE as BASELINE
from excise.bench.run import Record, Run, Unit
from excise.bench.suite import Picture, Suite, read_saved
from excise.concepts.concept import mentioned
from excise.drawn import fault
from excise.files import cell
from excise.statistics import Estimate


def results(run: Run, suite: Suite) -> dict[str, Any]:
    """Return, as JSON, the plan and each method's figures over concepts and by concept, costs, failures and gaps.

    Every case is compared with the same case of the unerased model. Cases that one of the two lacks, on which a
    detector failed, or whose picture is broken on either side count as `missing`, `errors` and `broken`, and enter no
    figure. Pictures taken over count as missing if the check of the method and concept failed.
    `identical` is not stated for a method if one of its pictures and the unerased one were generated with unlike
    hardware, settings or versions (`drawn_with`): their bits could differ without an eraser. `unlike` says which.
    `cut` is the number of prompts that the text encoder truncates. Cases whose prompt names the concept only in the
    truncated part (`unread`) count as not erased under every method, the baseline included: nothing was removed.
    """
    records: dict[str, dict[str, Record]] = {}
    for record in run.records():
        records.setdefault(record["method"], {})[record["case"]] = record
    base = records.get(BASELINE, {})
    plan = {key: value for key, value in run.plan.items() if key != "schema"}
    units = [Unit(label, concept) for label in run.plan["methods"] for concept in run.plan["concepts"]]
    return {
        **plan,
        "disclosed": dict(suite.disclosed),
        "drawn_with": _drawn_with(run, records, units),
        "methods": {label: _method(run, suite, label, records.get(label, {}), base) for label in run.plan["methods"]},
    }


def _drawn_with(run: Run, records: Mapping[str, Mapping[str, Record]], units: Sequence[Unit]) -> list[str]:
    """Return what the pictures were generated with. Records of earlier versions do not state it; the fits do."""
    rows: list[Mapping[str, Any]] = [row for own in records.values() for row in own.values()]
    found = {row["drawn_with"] for row in rows if "drawn_with" in row}
    return sorted(found or {fit["drawn_with"] for unit in units if "drawn_with" in (fit := _fit(run, unit))})


def _method(
    run: Run, suite: Suite, label: str, own: Mapping[str, Record], base: Mapping[str, Record]
) -> dict[str, Any]:
    pictures: dict[str, list[Picture]] = {}
    errors, broken, unread, missing, refused, costs, weak = [], [], [], 0, {}, [], {}
    differences: list[str] = []
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
        disproved = is_disproved(run, unit)
        for case in all_cases(run, suite, unit):
            mine, plain = own.get(case.id), base.get(case.id)
            if mine is None or plain is None or (disproved and "reused" in mine):
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
                if how := unlike(mine.get("drawn_with", ""), plain.get("drawn_with", "")):
                    differences.append(how)
                same, seen = mine["picture"] == plain["picture"], mine["seen"]
                if case.family not in harmless and (
                    lost := _unread(suite, concept, mine) or _unread(suite, concept, plain)
                ):
                    unread.append({"case": case.id, "lost": lost})
                    seen = _not_erased(seen)
                pictures[concept].append(Picture(case, seen, plain["seen"], same, *paths))
    figures = suite.over_concepts({concept: some for concept, some in pictures.items() if some})
    by_concept = {concept: suite.of_concept(some) for concept, some in pictures.items() if some}
    if differences:
        figures = {name: _UNKNOWN if _compares_bits(name) else figure for name, figure in figures.items()}
        by_concept = {
            concept: {name: None if _compares_bits(name) else figure for name, figure in found.items()}
            for concept, found in by_concept.items()
        }
    return {
        "figures": {name: figure.to_json() for name, figure in figures.items()},
        "concepts": {
            concept: {name: figure and figure.to_json() for name, figure in found.items()}
            for concept, found in by_concept.items()
        },
        "cost": _cost(costs, own, base),
        "pictures": len(own),
        "missing": missing,
        "errors": errors,
        "broken": broken,
        "unread": unread,
        "reused": _reused(run, label, own),
        "cut": sum("lost" in record for record in own.values()),
        "unlike": {"pictures": len(differences), "how": Counter(differences).most_common(1)[0][0]}
        if differences
        else {},
        "refused": refused,
        "weak": weak,
        "failed": {unit.concept: lines[-1] for unit, lines in run.errors().items() if unit.method == label},
    }


def _reused(run: Run, label: str, own: Mapping[str, Record]) -> dict[str, int]:
    """Count a method's pictures that were taken over from the unerased model, and those generated again as a check."""
    if label == BASELINE or not (count := sum("reused" in record for record in own.values())):
        return {}
    files = [checked_file(run.folder, Unit(label, concept)) for concept in run.plan["concepts"]]
    checks = [read_saved(file, dict) for file in files if file.exists()]
    return {
        "pictures": count,
        "checked": sum(len(check["redrawn"]) for check in checks),
        "elsewhere": sum(check.get("elsewhere", 0) for check in checks),
    }


REUSED = {
    "pictures": "reused",
    "checked": "reused and checked",
    "elsewhere": "reused, of other hardware than the check",
}
"""What `results.csv` calls the counts of pictures taken over."""

_UNKNOWN = Estimate(math.nan, math.nan, math.nan, 0)


def _compares_bits(figure: str) -> bool:
    return "identical" in figure.split(".")


def baseline_on_same_cases(run: Run, suite: Suite, label: str, measured: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the unerased model's figures over the cases that count for a method, or None if those are all of its own.

    `measured` is `results`' of the run: a case that failed or is broken with the method counts for neither there.
    """
    rows = run.records()

    def counted(name: str) -> set[str]:
        method = measured["methods"][name]
        odd = {one["case"] for one in (*method["errors"], *method["broken"])}
        return {row["case"] for row in rows if row["method"] == name} - odd

    base = counted(BASELINE)
    both = counted(label) & base
    if both == base:
        return None
    records = {row["case"]: row for row in rows if row["method"] == BASELINE and row["case"] in both}
    figures: dict[str, Any] = _method(run, suite, BASELINE, records, records)["figures"]
    return figures


def _unread(suite: Suite, concept: str, record: Record) -> str | None:
    """Return the truncated end of a record's prompt if the concept is named only there, else None."""
    if "lost" not in record:
        return None
    prompt, lost = str(record["prompt"]), str(record["lost"])
    mentions = suite.concept(concept).mentions
    # A mention across the cut is in the whole prompt, but in neither part.
    named, read = (mentioned(text, mentions) for text in (prompt, prompt.removesuffix(lost)))
    return lost if named and not read else None


def _not_erased(seen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the judges' verdicts, changed so that every judge sees the target."""
    second = {"second": seen["second"] | {"target": True}} if "second" in seen else {}
    return {**seen, **second, "target": True}


def fault_of(record: Mapping[str, Any], picture: Path) -> str | None:
    """Return what is wrong with a recorded picture, or None if it is sound.

    Records of earlier versions do not state this; then the file is checked for a picture of one colour.
    """
    if "fault" in record:
        return None if record["fault"] is None else str(record["fault"])
    return fault(read(picture)) if picture.exists() else None


def _cost(fits: list[dict[str, Any]], own: Mapping[str, Record], base: Mapping[str, Record]) -> dict[str, Any]:
    """Return the costs: medians of seconds per concept, seconds added per picture and bytes; the peak memory."""
    both = {case for case in own.keys() & base.keys() if "reused" not in own[case]}
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
    return read_saved(path, dict) if path.exists() else {}


def table(measured: Mapping[str, Any]) -> str:
    """Return the text of `results.csv`: method, concept, figure, value, low, high, n, pictures.

    The concept is "" for means over concepts, costs, and counts of truncated prompts, of pictures left out and of
    concepts that the method refused.
    """
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")

    def row(*cells: Any) -> None:
        writer.writerow([cell("" if value is None else value) for value in cells])

    row("method", "concept", "figure", *Estimate._fields)
    for label, method in measured["methods"].items():
        for concept, figures in {"": method["figures"], **method["concepts"]}.items():
            for name, figure in figures.items():
                row(label, concept, name, *(figure.get(field) if figure else None for field in Estimate._fields))
        for name, value in method["cost"].items():
            row(label, "", name, value, *[""] * 4)
        if method["cut"]:
            row(label, "", "prompts cut", method["cut"], *[""] * 4)
        if method["unread"]:
            row(label, "", "concept not read", len(method["unread"]), *[""] * 4)
        for name, count in method.get("reused", {}).items():
            row(label, "", REUSED[name], count, *[""] * 4)
        if method.get("unlike"):
            row(label, "", "unlike hardware or software", method["unlike"]["pictures"], *[""] * 4)
        for name, count in (outside(method) | {"concepts refused": len(method["refused"])}).items():
            row(label, "", name, count, *[""] * 4)
    return out.getvalue()


def outside(method: Mapping[str, Any]) -> dict[str, int]:
    """Count a method's pictures that enter no figure, by reason: `missing`, `errors`, `broken` by fault."""
    counts = {"missing": method["missing"], "errors": len(method["errors"])}
    return counts | {f"broken: {kind}": n for kind, n in sorted(Counter(b["fault"] for b in method["broken"]).items())}
