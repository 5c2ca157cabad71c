"""Pictures for a run's page, methods side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from excise.bench.items.cases import all_cases, picture_of
from excise.bench.pictures import read_png
from excise.bench.results import BASELINE, fault_of
from excise.bench.run import Run, Unit
from excise.bench.suite import Case, Suite
from excise.sites.truncation import label

SHOWN = 2
"""Pictures shown for each family and concept."""


@dataclass(frozen=True)
class Shot:
    """A method's picture of a prompt as PNG, with its alt text `says`; without a picture, `says` states why."""

    png: bytes | None
    says: str
    fired: bool = False


@dataclass(frozen=True)
class Row:
    """A prompt and each method's picture of it."""

    family: str
    prompt: str
    cells: list[Shot]


def pictures(run: Run, suite: Suite, measured: Mapping[str, Any]) -> list[tuple[str, list[Row]]]:
    """Return the rows of each concept: the first prompts of each family."""
    seen = {(record["method"], record["case"]): record for record in run.records()}
    return [(concept, _rows(run, suite, concept, list(measured["methods"]), seen)) for concept in measured["concepts"]]


def _rows(
    run: Run, suite: Suite, concept: str, methods: list[str], seen: Mapping[tuple[str, str], Mapping[str, Any]]
) -> list[Row]:
    shown: dict[str, int] = {}
    rows = []
    compared = {case.id for name in methods[1:] for case in all_cases(run, suite, Unit(name, concept))}
    for case in all_cases(run, suite, Unit(BASELINE, concept)):
        if compared and case.id not in compared:
            continue
        shown[case.family] = shown.get(case.family, 0) + 1
        if shown[case.family] <= SHOWN:
            record = seen.get((BASELINE, case.id), {})
            cells = [_shot(run, name, case, seen.get((name, case.id))) for name in methods]
            rows.append(Row(case.family, label(case.prompt, record.get("lost", "")), cells))
    return rows


def _shot(run: Run, name: str, case: Case, record: Mapping[str, Any] | None) -> Shot:
    path = picture_of(run, Unit(name, case.concept), case.id)
    if record is None or not path.exists():
        return Shot(None, "not generated yet")
    if fault := fault_of(record, path):
        return Shot(None, f"broken: {fault}")
    says = f"{name}: {label(case.prompt, record.get('lost', ''))}"
    return Shot(read_png(path), says, record.get("seen", {}).get("target", True))
