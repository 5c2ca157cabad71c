"""Pictures of a run's page, methods side by side."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from excise.app.pages.frame import image
from excise.bench.results import BASELINE, fault_of
from excise.bench.run import Run, Unit
from excise.bench.suite import Case, Suite
from excise.bench.worker import all_cases, picture_of
from excise.sites.truncation import label

SHOWN = 2
"""Pictures of a family and concept on the page."""


def pictures(run: Run, suite: Suite, measured: Mapping[str, Any]) -> str:
    seen = {(record["method"], record["case"]): record for record in run.records()}
    methods = list(measured["methods"])
    parts = []
    for n, concept in enumerate(measured["concepts"]):
        shown: dict[str, int] = {}
        rows = []
        compared = {case.id for name in methods[1:] for case in all_cases(run, suite, Unit(name, concept))}
        for case in all_cases(run, suite, Unit(BASELINE, concept)):
            if compared and case.id not in compared:
                continue
            shown[case.family] = shown.get(case.family, 0) + 1
            if shown[case.family] <= SHOWN:
                cells = "".join(f"<td>{_cell(run, name, case, seen)}</td>" for name in methods)
                own = seen.get((BASELINE, case.id), {})
                says = label(case.prompt, own.get("lost", ""))
                rows.append(f'<tr><th scope="row"><b>{escape(case.family)}</b> {escape(says)}</th>{cells}</tr>')
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in methods)
        parts.append(
            f"<details{' open' if n == 0 else ''}><summary>{escape(concept)}</summary><div class='scroll'>"
            f'<table class="strip compare"><tr><th scope="row"></th>{head}</tr>{"".join(rows)}</table></div></details>'
        )
    return f"""<section><h2>Pictures</h2>
<p class="faint">Blurred where the detector saw the target, or has seen nothing; point at a picture, or tap it, to see
that one. Rows are prompts: the first ones of each family, named in front of it; columns are methods, all with the same
seed.</p>
<input type="checkbox" id="unblur"><label class="switch" for="unblur">Show blurred pictures</label>
{"".join(parts)}</section>"""


def _cell(run: Run, name: str, case: Case, seen: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    record = seen.get((name, case.id))
    path = picture_of(run, Unit(name, case.concept), case.id)
    if record is None or not path.exists():
        return '<span class="note">not drawn yet</span>'
    if fault := fault_of(record, path):
        return f'<span class="note">broken: {escape(fault)}</span>'
    fired = record.get("seen", {}).get("target", True)
    attributes = f' tabindex="0" class="{"fired" if fired else ""}"'
    return image(path.read_bytes(), f"{name}: {label(case.prompt, record.get('lost', ''))}", attributes)
