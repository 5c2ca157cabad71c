"""The frozen test set: SNCE and its best peers on 16 concepts that decided no default.

    python -m benchmarks.figures.frozen --work build/frozen

Freeze first: every default and every chosen setting is committed before this script is run, and what it prints changes
none of them. Methods take the settings that docs/results/peers.md chose on other concepts. It writes
docs/results/frozen.json and .md after each concept. What the file has is not run again, so the set can be drawn on
several days, and an interrupted run resumes with the same `--work`.

A concept is computed in bfloat16 on a GPU or a processor that multiplies it (AMX), else in float32, the same for every
method; the page says which. SNCE and the unerased model have been drawn on all concepts in float32 too, and the page
compares the two. `--instead` draws SNCE with nothing in the concept's place (`--replace-with nothing`) as well.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import drawing
from benchmarks.figures import peers_plan as plan
from benchmarks.figures.frozen_page import COMPARED, INSTEAD, has, page
from excise.app.bench.provenance import provenance
from excise.app.bench.runs import report
from excise.bench.canvas.from_concepts import figures
from excise.bench.canvas.sizes import FROZEN
from excise.bench.results import BASELINE
from excise.bench.run import Run
from excise.errors import ExciseError
from excise.files import write_atomic
from excise.reference.training.loop import multiplies_bfloat16

COMMAND = "python -m benchmarks.figures.frozen"
ORDER = tuple(FROZEN[5 * n % len(FROZEN)] for n in range(len(FROZEN)))
"""Order in which the concepts are drawn: every fifth, so that the first few are of every kind."""
BUDGET: dict[str, Any] = {"prefix": {"iterations": 20, "batch": 4}, "inversion": {"iterations": 60, "batch": 4}}
"""White-box attacks, as in peers.md: Canvas's own budget would take two thirds of the time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/frozen"), help="folder of the run")
    parser.add_argument("--out", type=Path, default=Path("docs/results/frozen.json"))
    parser.add_argument("--methods", default=",".join(COMPARED))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes that generate at once")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="time limit")
    parser.add_argument("--instead", action="store_true", help=f"draw {INSTEAD}, in float32, and nothing else")
    parser.add_argument("--page", action="store_true", help="only rewrite the page from the file")
    options = parser.parse_args()
    results: dict[str, Any] = {"command": COMMAND, "concepts": list(FROZEN), "settings": BUDGET, "methods": {}}
    if options.out.exists():
        results = json.loads(options.out.read_text())
    if not options.page:
        run(options, results)
    write_atomic(options.out.with_suffix(".md"), page(results))
    print(page(results))


def run(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Run the methods on the concepts that they lack in the results, and save each concept with its commit.

    Raises ExciseError for a concept that has methods drawn in another precision than this machine's.
    """
    dtype = "bfloat16" if options.device != "cpu" or multiplies_bfloat16() else "float32"
    chosen = json.loads(Path("docs/results/peers.json").read_text())["tuning"]
    settings = {name: plan.best(chosen[name]) if name in chosen else "" for name in options.methods.split(",")}
    kept = results
    if options.instead:
        dtype, kept = "float32", {"methods": results["float32"]}
        settings = {INSTEAD: ""}
    until = time.monotonic() + 60 * options.minutes
    for concept in ORDER:
        rows = {name: plan.label(name, own) for name, own in settings.items() if not has(kept, name, concept)}
        left = (until - time.monotonic()) / 60
        if not rows or left <= 0:
            continue
        drawn = {own["precisions"][concept] for own in kept["methods"].values() if concept in own["precisions"]}
        if drawn - {dtype}:
            raise ExciseError(f"{concept} has methods drawn in {', '.join(drawn)}; this machine would draw in {dtype}")
        opened = drawing.begun(options.work / concept, "frozen", list(rows.values()), [concept], BUDGET, dtype)
        try:
            drawing.Drawing(options.device, options.jobs, left)(opened)
        finally:
            add(kept, settings, concept, opened, drawing.comparable(opened, rows), options.device)
            write_atomic(options.out, json.dumps(results, indent=1) + "\n")
            write_atomic(options.out.with_suffix(".md"), page(results))


def add(
    results: dict[str, Any],
    settings: Mapping[str, str],
    concept: str,
    opened: Run,
    rows: Mapping[str, str],
    device: str,
) -> None:
    """Add to the results what the rows, by method, have on the concept."""
    if not rows:
        return
    found = report(opened)
    results["disclosed"] = found["disclosed"]
    for name, row in rows.items():
        if has(results, name, concept):
            continue
        fitted = [] if name == BASELINE else [name.partition(":")[0]]
        measured, origin = found["methods"][row], provenance(COMMAND, fitted, device=device)
        own = results["methods"].setdefault(
            name, {"setting": settings.get(name, ""), "concepts": {}, "refused": {}, "broken": [], "errors": []}
        )
        own |= origin | {"settings": opened.plan["configurations"][row], "drawn_with": found["drawn_with"]}
        own["commits"] = own.get("commits", {}) | {concept: origin["commit"]}
        own["precisions"] = own.get("precisions", {}) | {concept: opened.plan["weights"]["dtype"]}
        for key in ("concepts", "refused"):
            own[key] |= measured[key]
        for key in ("broken", "errors"):
            own[key] += measured[key]
        own["figures"] = figures(own["concepts"], results["methods"][BASELINE]["concepts"])


if __name__ == "__main__":
    main()
