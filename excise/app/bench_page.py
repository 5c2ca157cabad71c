"""A run's report: one HTML file with its plots and pictures inside, nothing fetched, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from excise.app import svg
from excise.app.page import document, image
from excise.app.report import BADGES, legend
from excise.bench.bars import CANVAS, Bar
from excise.bench.protocols import nudenet
from excise.bench.results import BASELINE, fault_of
from excise.bench.run import Run, Unit
from excise.bench.statistics import Figure, behind, from_json
from excise.bench.suite import Case, Suite
from excise.bench.worker import Entry, all_cases, picture_of
from excise.methods import method as method_of

SHARES = {
    "ua": "Target gone, asked for by name (UA)",
    "asr": "Target still drawn under attack, mean over attacks",
    "ira_ratio": "Other concepts of its domain right, against unerased (IRA)",
    "cra_ratio": "Concepts of the other domain right, against unerased (CRA)",
    "mixed": "Target gone and partner kept in mixed prompts",
    "near_miss": "Object kept beside a near miss",
    "background": "Background kept in prompts with the target",
    "style": "Style kept in prompts with the target",
    "identical": "Unrelated pictures identical, bit for bit",
}
CHANGES = {
    "ira_change": "Change in IRA, paired by seed",
    "cra_change": "Change in CRA, paired by seed",
    "pixel_error": "Mean change of unrelated pictures",
    "outside": "Mean change outside the object, in prompts with the target",
}
MEANS = {
    "alignment": "Log-likelihood of what was asked for, nats",
    "alignment_change": "Its change",
    "clip_score": "CLIP score",
}
EXPLAINED = {
    "ua": "Prompts that name the target; whether its picture shows it. What it shows instead stands below.",
    "asr": "Of prompts from which the unerased model draws the target: those that still do. Less is better.",
    "ira_ratio": "Objects where an object is erased, styles where a style is; 100 % is as right as unerased.",
    "cra_ratio": "Styles where an object is erased, objects where a style is; 100 % is as right as unerased.",
    "mixed": "The target beside another object, which must stay.",
    "near_miss": "Prompts that share the target's word and mean something else, as in glue gun.",
    "background": "Where the unerased model drew the background that was asked for: it still is there.",
    "style": "The same for the style, where an object is erased.",
    "identical": "Prompts without the target: not one pixel differs from the unerased picture.",
}
"""A line below each card's title."""
LEFT = {
    "left_other": ("other", "another known object"),
    "left_empty": ("empty", "an empty scene"),
    "left_unrecognisable": ("unrecognisable", "something that neither judge knows"),
}
SECOND = {
    "agreement": "Pictures on which both judges agree",
    "ua_second": "Target gone (UA)",
    "ira_second": "Other concepts of its domain right (IRA)",
    "mixed_second": "Target gone and partner kept",
    "asr_second": "Target still drawn under attack",
}
DISTANCES = {
    "frechet": "Fréchet distance to unerased",
    "frechet_floor": "Its floor",
    "frechet_real": "Fréchet distance to real scenes",
}
COSTS = ("Time to erase", "Added to a picture", "Artefact", "Peak memory")
SWEPT = {
    "ua": ("target gone (UA)", "accent"),
    "ira_ratio": ("others kept (IRA)", "cool"),
    "mixed": ("partner kept", "good"),
    "asr": ("drawn under attack", "mute"),
}
"""What a sweep's plot shows: its name there and its colour."""
SHOWN = 2
"""Pictures of a family and concept on the page."""


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
        _summary(measured),
        _left(measured),
        _second(measured),
        _counts(measured),
        _attacks(suite, measured),
        _tradeoff(measured),
        _sweeps(measured),
    ]
    sections += [_concepts(measured), _pictures(run, suite, measured), _trust(measured), _gaps(measured)]
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
failed is an error, one that is flagged, not finite or of one colour is broken; neither counts anywhere.""",
    )


def _summary(measured: Mapping[str, Any]) -> str:
    cards = []
    shares, changes, others = (_measured_of(names, measured) for names in (SHARES, CHANGES, DISTANCES | MEANS))
    bars = CANVAS if measured["suite"] == "canvas" else {}
    for name, says in shares.items():
        bar = bars.get(name)
        rows = "".join(
            _row(label, method["figures"].get(name), None if label == BASELINE else bar)
            for label, method in measured["methods"].items()
        )
        goal = f" Bar: {bar.limit} {100 * bar.bound:g} %." if bar else ""
        explained = f'<p class="note">{escape(EXPLAINED.get(name, "") + goal)}</p>'
        cards.append(f'<div class="card"><h3>{escape(says)}</h3>{explained}{rows}</div>')
    methods = measured["methods"]
    table: list[tuple[str, list[str]]] = []
    table += [(says, [percent(m["figures"].get(name)) for m in methods.values()]) for name, says in changes.items()]
    table += [(says, [plain(m["figures"].get(name)) for m in methods.values()]) for name, says in others.items()]
    spent = [costs(method["cost"]) for method in methods.values()]
    table += [(says, [cells[n] for cells in spent]) for n, says in enumerate(COSTS)]
    head = "".join(f"<th>{escape(label)}</th>" for label in methods)
    rows = "".join(
        f"<tr><td>{escape(says)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for says, cells in table
    )
    return f"""<section><h2>Figures</h2>
<div class="plots">{"".join(cards)}</div>
{legend() if bars else ""}
<div class="scroll"><table class="wide"><tr><th>Further figures</th>{head}</tr>{rows}</table></div></section>"""


def _row(label: str, figure: Mapping[str, Any] | None, bar: Bar | None) -> str:
    """A method's line on a card: value, plot, and in words its interval, how much is behind it, and its standing."""
    words = ""
    if figure and figure["value"] is not None:
        span = "" if figure["low"] is None else f"{100 * figure['low']:.1f} to {100 * figure['high']:.1f} %, "
        words = f"{span}n = {behind(figure)}"
        if bar and (standing := bar.standing(from_json(figure))):
            words += f'</span><span class="badge {BADGES[standing]}">{standing}'
        words = f'<div class="text note"><span>{words}</span></div>'
    return (
        f'<div class="method"><span>{escape(label)}</span><b>{percent(figure)}</b>'
        f"{_interval(figure, None if bar is None else bar.bound)}{words}</div>"
    )


def _left(measured: Mapping[str, Any]) -> str:
    """What pictures show from which the target is gone, for suites that look."""
    if not _measured_of(dict.fromkeys(LEFT, ""), measured):
        return ""
    rows = []
    for label, method in measured["methods"].items():
        figures = method["figures"]
        shares = [(kind, figures.get(name)) for name, (kind, _) in LEFT.items()]
        if label == BASELINE or any(not figure or figure["value"] is None for _, figure in shares):
            continue
        stack = "".join(f'<i class="{kind}" style="width:{100 * f["value"]:.1f}%"></i>' for kind, f in shares if f)
        cells = [percent(figures.get("ua")), *(percent(f, interval=True) for _, f in shares)]
        cells += [percent(figures.get("background"), interval=True), percent(figures.get("style"), interval=True)]
        cells += [plain(figures.get("outside")), behind(figures["left_other"])]
        rows.append(
            f'<tr><td>{escape(label)}<div class="stack">{stack}</div></td>'
            f"{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        )
    if not rows:
        return ""
    key = "".join(f'<span><i class="{kind}"></i>{escape(says)}</span>' for kind, says in LEFT.values())
    heads = ("Gone", "Other object", "Empty", "Unknown to both", "Background kept", "Style kept", "Moved outside", "n")
    head = "".join(f"<th>{escape(says[:1].upper() + says[1:])}</th>" for says in heads)
    return f"""<section><h2>What is left where the target is gone</h2>
<p class="faint">Of direct prompts of an object whose picture is without it. “Gone” alone does not tell a clean
scene from a heap of parts. Beside it: how far the rest of the picture moved.</p><p class="key note">{key}</p>
<div class="scroll"><table class="wide"><tr><th>Method</th>{head}</tr>{"".join(rows)}</table></div></section>"""


def _measured_of(names: Mapping[str, str], measured: Mapping[str, Any]) -> dict[str, str]:
    """Those of the figures' names that this run has measured for any method."""
    figures = [method["figures"] for method in measured["methods"].values()]
    return {n: says for n, says in names.items() if any((one.get(n) or {}).get("value") is not None for one in figures)}


def _second(measured: Mapping[str, Any]) -> str:
    """What the second judge counts, for suites that have one."""
    names = _measured_of(SECOND, measured)
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


def _counts(measured: Mapping[str, Any]) -> str:
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


def costs(cost: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """What a method cost, in `COSTS`' order, as the page writes it."""
    erase, added, size, peak = (cost[name] for name in ("erase_seconds", "added_seconds", "bytes", "peak_memory"))
    return (
        "n/a" if erase is None else f"{erase:.1f} s",
        "n/a" if added is None else f"{1000 * added:+.0f} ms",
        "n/a" if size is None else f"{size / 1000:.1f} kB",
        "n/a" if peak is None else f"{peak / 1e9:.2f} GB",
    )


def _attacks(suite: Suite, measured: Mapping[str, Any]) -> str:
    rows = []
    for family in suite.families:
        if family.role == "keep" or not any(f"asr.{family.name}" in m["figures"] for m in measured["methods"].values()):
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
        return "n/a"
    low, high = 100 * min(drawn), 100 * max(drawn)
    return f"{low:.0f} %" if low == high else f"{low:.0f} to {high:.0f} %"


def _tradeoff(measured: Mapping[str, Any]) -> str:
    """Attack success against what moved: the Fréchet distance where there were pictures enough, else the pixels."""

    def value(method: Mapping[str, Any], name: str) -> float | None:
        figure = method["figures"].get(name)
        return figure["value"] if figure else None

    methods = {label: method for label, method in measured["methods"].items() if value(method, "asr") is not None}
    moved, says = "frechet", DISTANCES["frechet"]
    if any(value(method, moved) is None for method in methods.values()):
        moved, says = "pixel_error", CHANGES["pixel_error"]
    points = [(label, value(method, "asr") or 0.0, value(method, moved) or 0.0) for label, method in methods.items()]
    if len(points) < 2:
        return ""
    plot = svg.scatter(points, "target still drawn under attack", says)
    return f"""<section><h2>Erased against disturbed</h2>
<p class="faint">Down and to the left is better: the target is gone, and nothing else moved. The dashed line joins what
nothing else beats on both axes.</p>
<div class="card front">{plot}</div></section>"""


def _sweeps(measured: Mapping[str, Any]) -> str:
    """A plot for every setting of a method that takes three values or more while its others stay the same."""
    plots = []
    for setting, fixed, labels in sweeps(list(measured["methods"])):
        series = []
        for name, (says, kind) in SWEPT.items():
            figures = {x: measured["methods"][label]["figures"].get(name) for x, label in labels.items()}
            points = [(x, figure["value"]) for x, figure in figures.items() if figure and figure["value"] is not None]
            if points:
                series.append((says, points, kind))
        if series:
            plots.append(f'<div class="card"><h3>{escape(fixed)}</h3>{svg.lines(series, setting)}</div>')
    if not plots:
        return ""
    return f"""<section><h2>Sweeps</h2>
<p class="faint">One setting at a time, every other one the same.</p>
<div class="plots wide-plots">{"".join(plots)}</div></section>"""


def sweeps(labels: Sequence[str]) -> list[tuple[str, str, dict[float, str]]]:
    """Settings with three values or more among methods that are otherwise the same: the setting, what is fixed, and
    the label at each value."""
    found: dict[tuple[str, str], dict[float, str]] = {}
    for label in labels:
        entry = Entry.parse(label)
        every = vars(method_of(entry.method).Config(**entry.settings))
        numbers = {name for name, value in every.items() if isinstance(value, int | float)}
        for setting in numbers:
            others = {name: value for name, value in entry.settings.items() if name != setting}
            fixed = ", ".join((entry.method, *(f"{name} {value}" for name, value in sorted(others.items()))))
            found.setdefault((setting, fixed), {})[every[setting]] = label
    return [(setting, fixed, by) for (setting, fixed), by in found.items() if len(by) > 2]


def _trust(measured: Mapping[str, Any]) -> str:
    """The detectors' own accuracy, the attacks' budgets, and what drew the pictures."""
    told = {**measured["disclosed"], "drawn with": "; ".join(measured["drawn_with"])}
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in told.items())
    return f"""<section><h2>Judges and budgets</h2>
<div class="scroll"><table class="wide">{rows}</table></div></section>"""


def _concepts(measured: Mapping[str, Any]) -> str:
    names = [name for name in _measured_of(SHARES, measured) if not name.endswith("_ratio") and name != "asr"]
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


def _pictures(run: Run, suite: Suite, measured: Mapping[str, Any]) -> str:
    seen = {(record["method"], record["case"]): record for record in run.records()}
    labels = list(measured["methods"])
    parts = []
    for n, concept in enumerate(measured["concepts"]):
        shown: dict[str, int] = {}
        rows = []
        compared = {case.id for label in labels[1:] for case in all_cases(run, suite, Unit(label, concept))}
        for case in all_cases(run, suite, Unit(BASELINE, concept)):
            if compared and case.id not in compared:
                continue
            shown[case.family] = shown.get(case.family, 0) + 1
            if shown[case.family] <= SHOWN:
                cells = "".join(f"<td>{_cell(run, label, case, seen)}</td>" for label in labels)
                rows.append(f'<tr><th scope="row"><b>{escape(case.family)}</b> {escape(case.prompt)}</th>{cells}</tr>')
        head = "".join(f'<th scope="col">{escape(label)}</th>' for label in labels)
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


def _cell(run: Run, label: str, case: Case, seen: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    record = seen.get((label, case.id))
    path = picture_of(run, Unit(label, case.concept), case.id)
    if record is None or not path.exists():
        return '<span class="note">not drawn yet</span>'
    if fault := fault_of(record, path):
        return f'<span class="note">broken: {escape(fault)}</span>'
    fired = record.get("seen", {}).get("target", True)
    attributes = f' tabindex="0" class="{"fired" if fired else ""}"'
    return image(path.read_bytes(), f"{label}: {case.prompt}", attributes)


def _gaps(measured: Mapping[str, Any]) -> str:
    rows = []
    for label, method in measured["methods"].items():
        if method["missing"]:
            rows.append((label, f"{method['missing']} pictures are not drawn yet"))
        rows += [(label, f"{error['case']}: {error['error']}") for error in method["errors"]]
        rows += [(label, f"{one['case']}: broken picture by {one['by']}, {one['fault']}") for one in method["broken"]]
        rows += [(label, f"refused {concept}: {why}") for concept, why in method["refused"].items()]
        rows += [(label, f"not done, {concept}: {why}") for concept, why in method["failed"].items()]
    if not rows:
        return ""
    lines = "".join(f"<tr><td>{escape(label)}</td><td>{escape(text)}</td></tr>" for label, text in rows)
    return f"""<section><h2>What is missing</h2>
<div class="scroll"><table class="wide">{lines}</table></div></section>"""


def percent(figure: Mapping[str, Any] | None, interval: bool = False) -> str:
    """A figure as the page writes it."""
    if not figure or figure["value"] is None:
        return "n/a"
    text = f"{100 * figure['value']:.1f} %"
    if interval and figure["low"] is not None:
        text += f' <span class="note">{100 * figure["low"]:.0f} to {100 * figure["high"]:.0f}</span>'
    return text


def plain(figure: Mapping[str, Any] | None) -> str:
    """A figure that is no share, as the page writes it."""
    return "n/a" if not figure or figure["value"] is None else f"{figure['value']:.3g}"


def count(figure: Mapping[str, Any]) -> str:
    """A number of detections, as the page writes it."""
    return "n/a" if figure["value"] is None else f"{figure['value']:g}"


def _interval(figure: Mapping[str, Any] | None, bar: float | None = None) -> str:
    if not figure or figure["value"] is None:
        return ""
    value = figure["value"]
    low, high = (value if figure[end] is None else figure[end] for end in ("low", "high"))
    return svg.interval(Figure(value, low, high, figure["n"]), bar)
