"""A run's report: one HTML file with its plots and pictures inside, nothing fetched, no script."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from excise.app.bench.cards import summary
from excise.app.bench.figures import cut_prompts
from excise.app.bench.pictures import pictures
from excise.app.bench.plots import swept, tradeoff
from excise.app.bench.tables import attacks, concepts, counts, left, second
from excise.app.pages.frame import document
from excise.bench.run import Run
from excise.bench.suite import Suite


def render(run: Run, suite: Suite, measured: Mapping[str, Any]) -> str:
    """The page for what `excise.bench.results.results` counted."""
    facts = {
        "suite": measured["suite"],
        "size": measured["size"],
        "concepts": len(measured["concepts"]),
        "methods": len(measured["methods"]),
        "date": measured["date"],
        "machine": measured["machine"],
    }
    sections = [
        summary(measured),
        left(suite, measured),
        second(measured),
        counts(measured),
        attacks(suite, measured),
        tradeoff(measured),
        swept(measured),
    ]
    sections += [concepts(measured), pictures(run, suite, measured), _trust(measured), _gaps(measured)]
    return document(
        f"Excise bench: {measured['suite']}, {measured['size']}",
        "Concept erasers, <em>side by side</em>",
        """Every method drew the same prompts from the same seeds. Means over concepts carry 95 % intervals from
a bootstrap that resamples concepts, and with few concepts Wilson's over their pictures; shares of one concept carry
Wilson's.""",
        ((name, str(value)) for name, value in facts.items()),
        sections,
        """Made by <code>excise bench report</code>. The target is counted where the unerased model draws it.
A picture on which a detector
failed is an error, and one that is flagged, not finite or of one colour is broken; none of them counts anywhere. One
whose prompt names the target only past what the model reads counts as not erased, whatever it shows.""",
    )


def _trust(measured: Mapping[str, Any]) -> str:
    """The detectors' own accuracy, the attacks' budgets, and what drew the pictures."""
    told = {**measured["disclosed"], "drawn with": "; ".join(measured["drawn_with"])}
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in told.items())
    return f"""<section><h2>Judges and budgets</h2>
<div class="scroll"><table class="wide said">{rows}</table></div></section>"""


def _gaps(measured: Mapping[str, Any]) -> str:
    rows = []
    for label, method in measured["methods"].items():
        if method["missing"]:
            rows.append((label, f"{method['missing']} pictures are not drawn yet"))
        if method["cut"] or method["unread"]:
            rows.append((label, cut_prompts(method)))
        rows += [
            (label, f"{one['case']}: names the concept only in “{one['lost']}”, not erased") for one in method["unread"]
        ]
        rows += [(label, f"{error['case']}: {error['error']}") for error in method["errors"]]
        rows += [(label, f"{one['case']}: broken picture by {one['by']}, {one['fault']}") for one in method["broken"]]
        rows += [(label, f"refused {concept}: {why}") for concept, why in method["refused"].items()]
        rows += [
            (label, f"weak eraser, {concept}: {'; '.join(why)}") for concept, why in method.get("weak", {}).items()
        ]
        rows += [(label, f"not done, {concept}: {why}") for concept, why in method["failed"].items()]
    if not rows:
        return ""
    lines = "".join(f"<tr><td>{escape(label)}</td><td>{escape(text)}</td></tr>" for label, text in rows)
    return f"""<section><h2>What is missing or was not read</h2>
<div class="scroll"><table class="wide said">{lines}</table></div></section>"""
