"""Data for a run's page (pages/templates/bench.html)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from excise.app.bench.cards import bars_of, cards, further
from excise.app.bench.figures import cut_prompts, reused_pictures, unlike_pictures
from excise.app.bench.pictures import pictures
from excise.app.bench.plots import front, swept
from excise.app.bench.profile import profile
from excise.app.bench.tables import attacks, concepts, counts, differences, left, second
from excise.app.pages.parts import LOOKS, Table
from excise.app.pages.rendering import Made
from excise.app.pages.rendering import render as render_template
from excise.bench.bars import MEANINGS
from excise.bench.run import Run
from excise.bench.suite import Suite


def render(run: Run, suite: Suite, measured: Mapping[str, Any]) -> str:
    """Return the page as HTML, from what `excise.bench.results.results` returned."""
    other = ("--probes", measured["probes"]["run"]) if "probes" in measured else ()
    command = shlex.join(("excise", "bench", "report", run.where(), *other))
    return render_template(
        "bench.html",
        Made(command, measured["machine"], measured["date"]),
        measured=measured,
        facts=[
            ("suite", measured["suite"]),
            ("size", measured["size"]),
            ("concepts", len(measured["concepts"])),
            ("methods", len(measured["methods"])),
            ("date", measured["date"]),
            ("machine", measured["machine"]),
        ],
        cards=cards(measured),
        bars=bars_of(measured),
        meanings=MEANINGS,
        looks=LOOKS,
        further=further(measured),
        left=left(suite, measured),
        second=second(measured),
        counts=counts(measured),
        attacks=attacks(suite, measured),
        profile=profile(measured),
        differences=differences(measured),
        front=front(measured),
        sweeps=swept(run.plan["configurations"], measured),
        concepts=concepts(measured),
        pictures=pictures(run, suite, measured),
        trust=_trust(measured),
        gaps=_gaps(measured),
    )


def _trust(measured: Mapping[str, Any]) -> Table:
    """Return the table of the detectors' accuracy, the attacks' budgets, the pipelines used, and what was reused."""
    disclosed = {**measured["disclosed"], "generated with": "; ".join(measured["drawn_with"])}
    for label, method in measured["methods"].items():
        if method.get("reused"):
            disclosed[f"{label}, not generated"] = reused_pictures(method)
    return Table("Judges, attacks and pipelines", (), list(disclosed.items()), prose=True)


def _gaps(measured: Mapping[str, Any]) -> Table:
    rows = []
    for label, method in measured["methods"].items():
        if method["missing"]:
            rows.append((label, f"{method['missing']} pictures are not generated yet"))
        if method["cut"] or method["unread"]:
            rows.append((label, cut_prompts(method)))
        if method.get("unlike"):
            rows.append((label, unlike_pictures(method)))
        rows += [
            (label, f"{one['case']}: names the concept only in “{one['lost']}”, which is cut off; counts as not erased")
            for one in method["unread"]
        ]
        rows += [(label, f"{error['case']}: {error['error']}") for error in method["errors"]]
        rows += [(label, f"{one['case']}: broken picture by {one['by']}, {one['fault']}") for one in method["broken"]]
        rows += [(label, f"refused {concept}: {why}") for concept, why in method["refused"].items()]
        rows += [
            (label, f"weak eraser, {concept}: {'; '.join(why)}") for concept, why in method.get("weak", {}).items()
        ]
        rows += [(label, f"not done, {concept}: {why}") for concept, why in method["failed"].items()]
    return Table("Missing or excluded, by method", (), rows, prose=True)
