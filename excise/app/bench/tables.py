"""Tables of a run's page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from excise.app.bench.cards import SHARES
from excise.app.bench.figures import UNKNOWN, count, measured_of, percent, plain
from excise.bench.protocols import nudenet
from excise.bench.protocols.unlearncanvas import SURE
from excise.bench.results import BASELINE
from excise.bench.statistics import behind
from excise.bench.suite import Suite

LEFT = {
    "left_other": ("other", "Other object", "another known object"),
    "left_empty": ("empty", "Empty", "an empty scene"),
    "left_unrecognisable": ("unrecognisable", "Unknown to both", "something that neither judge knows"),
    "left_class": ("other", "Other class", "another known class"),
    "left_unsure": ("unrecognisable", "Unsure", f"a class that the classifier gives less than {100 * SURE:g} %"),
}
"""What a picture without the target shows: its colour, a column's head, and in words."""
MOVED = {
    "background": "Background kept",
    "style": "Style kept",
    "objects": "Objects kept",
    "outside": "Moved outside",
}
SECOND = {
    "agreement": "Pictures on which both judges agree",
    "ua_second": "Target gone (UA)",
    "ira_second": "Other concepts of its domain right (IRA)",
    "mixed_second": "Target gone and partner kept",
    "asr_second": "Target still drawn under attack",
}


def left(suite: Suite, measured: Mapping[str, Any]) -> str:
    """What pictures show from which the target is gone; for suites that do not look, that they do not."""
    title = "<h2>What is left where the target is gone</h2>"
    if not any(name in method["figures"] for method in measured["methods"].values() for name in LEFT):
        if all(family.role == "keep" for family in suite.families):
            return ""
        return f"""<section>{title}
<p class="faint">Not counted: this suite's detectors tell whether the target is there, and nothing of what is left.</p>
</section>"""
    kinds = {name: LEFT[name] for name in measured_of(dict.fromkeys(LEFT, ""), measured)}
    moved = measured_of(MOVED, measured)
    rows = []
    for label, method in measured["methods"].items():
        figures = {name: f for name, f in method["figures"].items() if f and f["value"] is not None}
        if label == BASELINE or not figures.keys() & (kinds.keys() | moved.keys()):
            continue
        stack = "".join(
            f'<i class="{kind}" style="width:{100 * figures[name]["value"]:.1f}%"></i>'
            for name, (kind, *_) in kinds.items()
            if name in figures
        )
        cells = [percent(figures.get("ua")), *(percent(figures.get(name), interval=True) for name in kinds)]
        cells += [
            plain(figures.get(name)) if name == "outside" else percent(figures.get(name), interval=True)
            for name in moved
        ]
        cells.append(behind(figures[next(name for name in (*kinds, *moved) if name in figures)]))
        bar = f'<div class="stack">{stack}</div>' if stack else ""
        rows.append(f"<tr><td>{escape(label)}{bar}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    if not rows:
        return ""
    key = "".join(f'<span><i class="{kind}"></i>{escape(says)}</span>' for kind, _, says in kinds.values())
    heads = ("Gone", *(head for _, head, _ in kinds.values()), *moved.values(), "n")
    head = "".join(f"<th>{escape(says)}</th>" for says in heads)
    return f"""<section>{title}
<p class="faint">Of prompts that name the target and whose picture is without it. “Gone” alone does not tell a clean
scene from a heap of parts. Beside it: how far the rest of the picture moved.</p><p class="key note">{key}</p>
<div class="scroll"><table class="wide"><tr><th>Method</th>{head}</tr>{"".join(rows)}</table></div></section>"""


def second(measured: Mapping[str, Any]) -> str:
    """What the second judge counts, for suites that have one."""
    names = measured_of(SECOND, measured)
    if not names:
        return ""
    head = "".join(f"<th>{escape(says)}</th>" for says in names.values())
    rows = "".join(
        f"<tr><td>{escape(label)}</td>"
        + "".join(f"<td>{percent(method['figures'].get(name))}</td>" for name in names)
        + "</tr>"
        for label, method in measured["methods"].items()
    )
    return f"""<section><h2>By the second judge</h2>
<p class="faint">A network of another kind, trained apart, counts the same pictures again.</p>
<div class="scroll"><table class="wide"><tr><th>Method</th>{head}</tr>{rows}</table></div></section>"""


def counts(measured: Mapping[str, Any]) -> str:
    """NudeNet's detections by class, as in the paper's Table 1 and 2, for suites that count them."""
    columns = [*nudenet.CLASSES.values(), "Total", "CSA(F)", "CSA(M)", "CSA"]
    rows = "".join(
        f"<tr><td>{escape(label)}</td>"
        + "".join(f"<td>{count(method['figures'][name])}</td>" for name in columns)
        + "</tr>"
        for label, method in measured["methods"].items()
        if "Total" in method["figures"]
    )
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    return f"""<section><h2>Detections</h2>
<p class="faint">Each exposed class once a picture, as RECE and SNCE count; CSA leaves out feet, belly and armpits.</p>
<div class="scroll"><table class="wide"><tr><th>Method</th>{head}</tr>{rows}</table></div></section>"""


def attacks(suite: Suite, measured: Mapping[str, Any]) -> str:
    rows = []
    for family in suite.families:
        attacked = measured_of({f"asr.{family.name}": family.title}, measured)
        if family.role == "keep" or not (attacked or _drawn(measured, family.name) != UNKNOWN):
            continue
        cells = "".join(
            f"<td>{percent(method['figures'].get(f'asr.{family.name}'))}</td>"
            for method in measured["methods"].values()
        )
        untestable = [
            concept
            for concept, figures in measured["methods"][BASELINE]["concepts"].items()
            if f"drawn.{family.name}" in figures and figures.get(f"asr.{family.name}") is None
        ]
        said = f'<div class="note">not testable: {escape(", ".join(untestable))}</div>' if untestable else ""
        rows.append(
            f"<tr><td><b>{escape(family.name)}</b> {escape(family.title)}{said}</td>"
            f"<td>{_drawn(measured, family.name)}</td>{cells}</tr>"
        )
    if not rows:
        return ""
    head = "".join(f"<th>{escape(label)}</th>" for label in measured["methods"])
    return f"""<section><h2>What still draws the target</h2>
<p class="faint">Of the prompts from which the unerased model draws the target, the share that still does, by kind of
prompt. Where the unerased model draws it in less than 30 % of a concept's prompts, that concept is not testable.</p>
<div class="scroll"><table class="wide"><tr><th>Prompts</th><th>Unerased draws it</th>{head}</tr>{"".join(rows)}</table>
</div></section>"""


def _drawn(measured: Mapping[str, Any], family: str) -> str:
    """The range over concepts of how often the unerased model draws the target."""
    concepts = measured["methods"][BASELINE]["concepts"].values()
    drawn = [figures[f"drawn.{family}"]["value"] for figures in concepts if f"drawn.{family}" in figures]
    if not drawn:
        return UNKNOWN
    low, high = 100 * min(drawn), 100 * max(drawn)
    return f"{low:.0f} %" if low == high else f"{low:.0f} to {high:.0f} %"


def concepts(measured: Mapping[str, Any]) -> str:
    names = [name for name in measured_of(SHARES, measured) if not name.endswith("_ratio") and name != "asr"]
    parts = []
    for label, method in measured["methods"].items():
        if label == BASELINE:
            continue
        rows = "".join(
            f"<tr><td>{escape(concept)}</td>"
            + "".join(f"<td>{percent(figures.get(name), interval=True)}</td>" for name in names)
            + "</tr>"
            for concept, figures in method["concepts"].items()
        )
        head = "".join(f"<th>{escape(SHARES[name])}</th>" for name in names)
        parts.append(
            f"<details><summary>{escape(label)}, concept by concept</summary>"
            f'<div class="scroll"><table class="wide"><tr><th>Concept</th>{head}</tr>{rows}</table></div></details>'
        )
    return f"<section><h2>Concept by concept</h2>{''.join(parts)}</section>"
