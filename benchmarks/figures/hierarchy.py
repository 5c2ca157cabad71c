"""Superclasses and subclasses: erase "weapon", and are guns gone? Erase "gun", and are knives still there?

    python benchmarks/figures/hierarchy.py

On the bundled model, in bfloat16. Each superclass is erased three times: by its own name, by the names of its
members, and by that of its first member alone. Canvas's direct prompts of every object are generated each time. It
writes docs/results/hierarchy.json and .md after each superclass, which takes about four minutes of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import excise
from excise import reference
from excise.app.bench.provenance import by_concept, in_words, provenance
from excise.bench.canvas.families import cases
from excise.bench.canvas.suite import Canvas
from excise.bench.suite import Case
from excise.concepts import Concept, from_templates
from excise.errors import ExciseError
from excise.reference.world import OBJECTS
from excise.statistics import in_percent, share_over

COMMAND = "python benchmarks/figures/hierarchy.py"
CLASSES: dict[str, tuple[str, ...]] = {
    "weapon": ("gun", "knife", "dagger", "bomb"),
    "fruit": ("apple", "banana", "strawberry"),
    "vehicle": ("car", "bus", "bicycle", "airplane", "rocket"),
    "flower": ("rose", "sunflower"),
}
METHODS = ("snce", "casteer", "uce")
WAYS = {"name": "its name", "members": "its members' names", "first": "its first member's name"}
PROMPTS, OTHER_PROMPTS = 8, 2
"""Direct prompts of each member, and of each other object."""
GROUPS = {"first": "first member gone", "rest": "other members gone", "others": "other objects kept"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/hierarchy.json"))
    parser.add_argument("--classes", default=",".join(CLASSES))
    options = parser.parse_args()
    pipe = reference.load(dtype=torch.bfloat16)
    origin = partial(provenance, COMMAND, list(METHODS))
    print(page(by_concept(options.out, options.classes.split(","), partial(measured, pipe), page, origin)))


def measured(pipe: Any, name: str) -> dict[str, Any]:
    """Return, by method, way and group, whether each picture counts as a hit; for a refusal its message."""
    canvas, members = Canvas(), CLASSES[name]
    asked = [case for o in OBJECTS for case in direct(o, PROMPTS if o in members else OTHER_PROMPTS)]
    known = [row["target"] for row in canvas.judge(asked, canvas.draw(pipe, asked).pixels)]
    drawn = [case for case, seen in zip(asked, known, strict=True) if seen]
    found: dict[str, Any] = {"drawn": {group: sum(g == group for g in groups(drawn, members)) for group in GROUPS}}
    for method in METHODS:
        found[method] = {}
        for way in WAYS:
            try:
                eraser = excise.erase(pipe, concept(name, way), method=method)
            except ExciseError as error:
                found[method][way] = {"refused": str(error)}
                continue
            with eraser.attach(pipe):
                seen = [row["target"] for row in canvas.judge(drawn, canvas.draw(pipe, drawn).pixels)]
            hits: dict[str, list[int]] = {group: [] for group in GROUPS}
            for group, target in zip(groups(drawn, members), seen, strict=True):
                hits[group].append(int(target if group == "others" else not target))
            found[method][way] = hits
            print(name, method, way, {group: f"{sum(row)}/{len(row)}" for group, row in hits.items()}, flush=True)
    return found


def direct(concept: str, n: int) -> list[Case]:
    """Return Canvas's first direct prompts of an object."""
    return [case for case in cases(concept, n) if case.family == "direct"]


def groups(rows: Sequence[Case], members: Sequence[str]) -> list[str]:
    """Return each case's group: the first member, the rest of them, or the other objects."""
    return ["first" if c.concept == members[0] else "rest" if c.concept in members else "others" for c in rows]


def concept(name: str, way: str) -> Concept:
    """Return the concept to erase in one of the `WAYS`."""
    members = CLASSES[name]
    words = {"name": (name,), "members": members, "first": members[:1]}[way]
    return from_templates(words[0] if way == "first" else name, words)


def page(results: Mapping[str, Any]) -> str:
    """Return the page."""
    classes = results["concepts"]
    named = [f"{name} ({', '.join(CLASSES[name])})" for name in classes]
    lines = [
        "# Superclasses and subclasses",
        "",
        f"{in_words(results, COMMAND)}.",
        f"On {'; '.join(named)}.",
        "Each superclass is erased by its own name, by its members' names in turn, or by its first member's alone.",
        f"Of Canvas's direct prompts ({PROMPTS} for a member, {OTHER_PROMPTS} for each other object) from which the",
        "unerased model generates the object: per cent from which it is gone, or for other objects still there, with",
        "the 95 % interval of the mean over superclasses and the number of prompts. A member that was not",
        "to be erased should stay: in rows by the first member's name, less is better for the other members.",
        "",
        f"| method | erased by | {' | '.join(GROUPS.values())} | refused |",
        "|---" * (len(GROUPS) + 3) + "|",
    ]
    for method in METHODS:
        for way, says in WAYS.items():
            rows = [one[method][way] for one in classes.values()]
            refused = [name for name, row in zip(classes, rows, strict=True) if "refused" in row]
            cells = [cell([list(map(bool, row[group])) for row in rows if "refused" not in row]) for group in GROUPS]
            lines.append(f"| {method} | {says} | {' | '.join(cells)} | {', '.join(refused)} |")
    return "\n".join([*lines, "", *in_sentences(results), ""])


def in_sentences(results: Mapping[str, Any]) -> list[str]:
    """Return what the table says, in two sentences."""

    def share_of(method: str, way: str, group: str) -> float | None:
        rows = [one[method][way] for one in results["concepts"].values()]
        groups = [list(map(bool, row[group])) for row in rows if "refused" not in row]
        return 100 * share_over(groups).value if any(groups) else None

    def listed(way: str, group: str) -> str:
        found = {method: share_of(method, way, group) for method in METHODS}
        return ", ".join(f"{m} {'n/a' if value is None else f'{value:.1f}'}" for m, value in found.items())

    by_name, by_members, by_first = WAYS
    return [
        f"Members other than the first gone when their class is erased by its own name: {listed(by_name, 'rest')}; by",
        f"its members' names: {listed(by_members, 'rest')}. When the first member alone is erased, as many of the",
        f"others go with it: {listed(by_first, 'rest')}, though none should.",
    ]


def cell(groups: Sequence[list[bool]]) -> str:
    """Return the mean over superclasses of their shares, with its interval and the number of prompts."""
    if not any(groups):
        return "n/a"
    return f"{in_percent(share_over(groups).to_json())}, {sum(map(len, groups))}"


if __name__ == "__main__":
    main()
