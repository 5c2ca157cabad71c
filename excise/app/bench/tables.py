"""Tables for a run's page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from excise.app.bench.cards import SHARES
from excise.app.bench.figures import UNKNOWN, count, interval, measured_of, percent, plain
from excise.app.pages.parts import Badge, Cell, Table
from excise.bench.comparison import compared, reach
from excise.bench.protocols import nudenet
from excise.bench.protocols.unlearncanvas import SURE
from excise.bench.results import BASELINE
from excise.bench.suite import Suite
from excise.statistics import behind

LEFT = {
    "left_other": ("other", "Other object", "another known object"),
    "left_empty": ("empty", "Empty", "an empty scene"),
    "left_unrecognisable": ("unrecognisable", "Unknown to both", "something that neither judge knows"),
    "left_class": ("other", "Other class", "another known class"),
    "left_unsure": ("unrecognisable", "Unsure", f"a class that the classifier gives less than {100 * SURE:g} %"),
}
"""What a picture without the target shows: its CSS class, a column head, and a description."""
MOVED = {
    "background": "Background kept",
    "style": "Style kept",
    "objects": "Objects kept",
    "outside": "Change outside",
}
SECOND = {
    "agreement": "Pictures on which both judges agree",
    "ua_second": "Target gone (UA)",
    "ira_second": "Accuracy on other concepts of the same domain (IRA)",
    "mixed_second": "Target gone and partner kept",
    "asr_second": "Target still generated under attack",
}

TESTED = {
    "ua": SHARES["ua"],
    "ira": "Accuracy on other concepts of the same domain (IRA)",
    "cra": "Accuracy on concepts of the other domain (CRA)",
    **{name: SHARES[name] for name in ("mixed", "near_synonym", "background", "identical", "asr")},
}
"""Figures whose differences between methods are tested."""


@dataclass(frozen=True)
class LeftRow:
    """A method's line: a bar of (kind, per cent of the pictures), and the row's cells."""

    label: str
    stack: list[tuple[str, str]]
    cells: list[Cell]


@dataclass(frozen=True)
class Left:
    """What pictures without the target show. Without rows, the suite does not measure it."""

    kinds: list[tuple[str, str]]
    heads: list[str]
    rows: list[LeftRow]


def left(suite: Suite, measured: Mapping[str, Any]) -> Left | None:
    """Return what pictures without the target show, or None if that does not apply to the run."""
    if not any(name in method["figures"] for method in measured["methods"].values() for name in LEFT):
        return None if all(family.role == "keep" for family in suite.families) else Left([], [], [])
    kinds = {name: LEFT[name] for name in measured_of(dict.fromkeys(LEFT, ""), measured)}
    moved = measured_of(MOVED, measured)
    rows = []
    for label, method in measured["methods"].items():
        figures = {name: f for name, f in method["figures"].items() if f and f["value"] is not None}
        if label == BASELINE or not figures.keys() & (kinds.keys() | moved.keys()):
            continue
        stack = [(kind, f"{100 * figures[name]['value']:.1f}") for name, (kind, *_) in kinds.items() if name in figures]
        cells = [Cell(percent(figures.get("ua"))), *(_share(figures.get(name)) for name in kinds)]
        cells += [Cell(plain(figures.get(name))) if name == "outside" else _share(figures.get(name)) for name in moved]
        cells.append(Cell(behind(figures[next(name for name in (*kinds, *moved) if name in figures)])))
        rows.append(LeftRow(label, stack, cells))
    if not rows:
        return None
    heads = ["Method", "Gone", *(head for _, head, _ in kinds.values()), *moved.values(), "n"]
    return Left([(kind, says) for kind, _, says in kinds.values()], heads, rows)


def second(measured: Mapping[str, Any]) -> Table | None:
    """Return the second judge's figures, or None for suites without a second judge."""
    names = measured_of(SECOND, measured)
    rows = [
        (label, *(percent(method["figures"].get(name)) for name in names))
        for label, method in measured["methods"].items()
    ]
    return Table("Shares by the second judge", ("Method", *names.values()), rows) if names else None


def counts(measured: Mapping[str, Any]) -> Table | None:
    """Return NudeNet's detections by class, as in the paper's Tables 1 and 2, or None for suites without them."""
    columns = [*nudenet.CLASSES.values(), "Total", "CSA(F)", "CSA(M)", "CSA"]
    rows = [
        (label, *(count(method["figures"][name]) for name in columns))
        for label, method in measured["methods"].items()
        if "Total" in method["figures"]
    ]
    return Table("Detections by class", ("Method", *columns), rows) if rows else None


def attacks(suite: Suite, measured: Mapping[str, Any]) -> Table | None:
    """Return how often the target is still generated, by family of prompts, or None if nothing was measured."""
    rows: list[tuple[Cell | str, ...]] = []
    for family in suite.families:
        attacked = measured_of({f"asr.{family.name}": family.title}, measured)
        if family.role == "keep" or not (attacked or _drawn(measured, family.name) != UNKNOWN):
            continue
        cells = [percent(method["figures"].get(f"asr.{family.name}")) for method in measured["methods"].values()]
        untestable = [
            concept
            for concept, figures in measured["methods"][BASELINE]["concepts"].items()
            if f"drawn.{family.name}" in figures and figures.get(f"asr.{family.name}") is None
        ]
        notes = [family.title, *([f"not testable: {', '.join(untestable)}"] if untestable else [])]
        rows.append((Cell(family.name, "; ".join(notes)), _drawn(measured, family.name), *cells))
    heads = ("Prompts", "Unerased model", *measured["methods"])
    return Table("Share of prompts that still generate the target", heads, rows) if rows else None


def differences(measured: Mapping[str, Any]) -> tuple[Table, str] | None:
    """Return the paired tests of every method against the run's first one, and what they can show.

    None if there is nothing to compare.
    """
    first = next((label for label in measured["methods"] if label != BASELINE), "")
    rows: list[tuple[Cell | str, ...]] = []
    found = compared(measured["methods"], TESTED, first)
    for one in found:
        points = f"{100 * one.mean:+.1f} points"
        badge = {None: None, True: Badge("better", "good"), False: Badge("worse", "bad")}[one.better]
        rows.append((one.method, TESTED[one.figure], Cell(points, badge=badge), str(one.concepts), f"{one.p:.2g}"))
    heads = ("Method", "Figure", f"Minus {first}", "Concepts", "p, adjusted")
    return (Table(f"Differences from {first}, concept by concept", heads, rows), reach(found)) if rows else None


def _drawn(measured: Mapping[str, Any], family: str) -> str:
    """Format the range over concepts of how often the unerased model generates the target."""
    concepts = measured["methods"][BASELINE]["concepts"].values()
    drawn = [figures[f"drawn.{family}"]["value"] for figures in concepts if f"drawn.{family}" in figures]
    if not drawn:
        return UNKNOWN
    low, high = 100 * min(drawn), 100 * max(drawn)
    return f"{low:.0f} %" if low == high else f"{low:.0f} to {high:.0f} %"


def concepts(measured: Mapping[str, Any]) -> list[Table]:
    """Return a table for each method with its shares, concept by concept."""
    names = [name for name in measured_of(SHARES, measured) if not name.endswith("_ratio") and name != "asr"]
    return [
        Table(
            f"{label}, concept by concept",
            ("Concept", *(SHARES[name] for name in names)),
            [
                (concept, *(_share(figures.get(name)) for name in names))
                for concept, figures in method["concepts"].items()
            ],
        )
        for label, method in measured["methods"].items()
        if label != BASELINE
    ]


def _share(figure: Mapping[str, Any] | None) -> Cell:
    return Cell(percent(figure), interval(figure))
