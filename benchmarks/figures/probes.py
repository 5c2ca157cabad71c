"""What is left of a concept beyond the wording of prompts, by method: the suite `probes` on standard concepts.

    python -m benchmarks.figures.probes --work build/probes

Methods take the settings that docs/results/peers.md chose, or their defaults. It writes docs/results/probes.json and
.md after each concept, which takes about ten minutes of one core. Concepts and probes that
the file has are kept. All in bfloat16.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import comparison, drawing
from benchmarks.figures import peers_plan as plan
from excise.app.bench.profile import FIGURES
from excise.app.bench.provenance import in_words, provenance
from excise.app.bench.runs import report
from excise.bench.canvas.from_concepts import outcomes
from excise.bench.canvas.sizes import STANDARD
from excise.bench.probes.probes import PROBES
from excise.bench.results import BASELINE
from excise.files import read_json, write_atomic
from excise.statistics import share_over

COMMAND = "python -m benchmarks.figures.probes"
COMPARED = ("snce", "casteer", "casteer-gated", "snce+casteer-gated", "uce", "esd-x")
CONCEPTS = ("gun", "cat", "pizza", "ink")
"""One of each kind; the first that are drawn."""
DTYPE = "bfloat16"


def main() -> None:
    options = parsed(__doc__, "probes", CONCEPTS)
    concept_by_concept(options, Measured(COMMAND, COMPARED, "probes", "standard", {}, tuple(PROBES)), page)


def parsed(description: str | None, name: str, concepts: Sequence[str]) -> argparse.Namespace:
    """Return the command line's options for a file of results with this name."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build") / name, help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path(f"docs/results/{name}.json"))
    parser.add_argument("--concepts", default=",".join(concepts))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes that generate at once")
    parser.add_argument("--page", action="store_true", help="only rewrite the page from the file")
    return parser.parse_args()


@dataclass(frozen=True)
class Measured:
    """What a script draws of each concept."""

    command: str
    methods: tuple[str, ...]
    suite: str
    size: str
    settings: Mapping[str, Any]
    families: tuple[str, ...]


def concept_by_concept(
    options: argparse.Namespace, measured: Measured, page: Callable[[Mapping[str, Any]], str]
) -> None:
    """Measure what the file lacks of each concept, write the file and its page after each, and print the page."""
    results: dict[str, Any] = read_json(options.out) if options.out.exists() else {"methods": {}}
    for concept in [] if options.page else options.concepts.split(","):
        if names := lacking(results, concept, measured.families):
            measure(results, concept, names, options, measured)
            write_atomic(options.out, json.dumps(results, indent=1) + "\n")
            write_atomic(options.out.with_suffix(".md"), page(results))
    write_atomic(options.out.with_suffix(".md"), page(results))
    print(page(results))


def lacking(results: Mapping[str, Any], concept: str, families: Sequence[str]) -> list[str]:
    """Return the families that were not drawn of a concept."""
    drawn = results["methods"].get(BASELINE, {}).get(concept, {})
    commits = results.get("family_commits", {}).get(concept, {})
    return [name for name in families if name not in commits and f"drawn.{name}" not in drawn]


def measure(
    results: dict[str, Any], concept: str, names: Sequence[str], options: argparse.Namespace, measured: Measured
) -> None:
    """Draw all methods on a concept by some families, and add their figures to the results."""
    chosen = read_json(Path("docs/results/peers.json"))["tuning"]
    rows = {name: plan.label(name, plan.best(chosen[name]) if name in chosen else "") for name in measured.methods}
    first = names[0] == measured.families[0]
    run = drawing.begun(
        options.work / (concept if first else f"{concept}-{names[0]}"),
        measured.size,
        list(rows.values()),
        [concept],
        {**measured.settings, "only": list(names)},
        DTYPE,
        measured.suite,
    )
    drawing.Drawing(options.device, options.jobs, float("inf"))(run)
    if not set(rows.values()) <= set(drawing.complete(run, rows.values())):
        raise SystemExit(f"{run.folder} is not finished; repeat the command")
    found = report(run)
    for name, row in {BASELINE: BASELINE, **rows}.items():
        own = found["methods"][row]["concepts"].get(concept, {})
        known = results["methods"].setdefault(name, {}).setdefault(concept, {})
        known |= {key: value for key, value in own.items() if key.partition(".")[2] in names}
    origin = provenance(measured.command, list(measured.methods), device=options.device)
    results.setdefault("family_commits", {}).setdefault(concept, {}).update(dict.fromkeys(names, origin["commit"]))
    results |= origin | {"settings": dict(run.plan["configurations"]), "disclosed": found["disclosed"]}


def other_commits(results: Mapping[str, Any]) -> list[str]:
    """Return a sentence on the figures of other commits than the one that the page names, if there are any."""
    of_others: dict[str, list[str]] = {}
    for concept, by_family in results.get("family_commits", {}).items():
        for family, commit in by_family.items():
            if commit != results["commit"]:
                of_others.setdefault(commit, []).append(f"{family} ({concept})")
    cells = [f"{', '.join(rows)} at commit {commit[:12]}" for commit, rows in of_others.items()]
    return [f"Measured before: {'; '.join(cells)}."] if cells else []


def page(results: Mapping[str, Any]) -> str:
    """Return the page."""
    rows = {name: {"figures": figures(own), "concepts": own} for name, own in results["methods"].items()}
    concepts = list(results["methods"][BASELINE])
    heads = {key: name for key, name in FIGURES.items() if any(key in own["figures"] for own in rows.values())}
    able = rows[BASELINE]["figures"].get("able.leakage")
    methods = {name: own for name, own in rows.items() if name != BASELINE}
    lines = [
        "# What is left beyond prompts",
        "",
        f"{in_words(results, COMMAND)}.",
        *other_commits(results),
        f"On {', '.join(concepts)} ({len(concepts)} of {len(STANDARD)} standard concepts), in {DTYPE}. A probe draws",
        "the concept in another way than by a prompt alone ([what each one does](../how-to/probe.md)). Per cent of",
        "prompts that still generate it, of those from which the unerased model does by the same probe; with the 95 %",
        "interval of the mean over concepts (a bootstrap over concepts, widened to Wilson's over all prompts if they",
        "agree), and the number of prompts. 0 is best.",
        *(
            ["esd-x ran with η = 1, and with the learning rate that was chosen with η = 2."]
            if "esd-x" in methods
            else []
        ),
        *(
            (
                "Of leakage: per cent of prompts whose other object takes on the concept's colours, of those from",
                "which the unerased model draws both in their own",
                f"({comparison.cell(rows[BASELINE], 'able.leakage')}).",
            )
            if able
            else ()
        ),
        "",
        f"| probe | {' | '.join(methods)} |",
        "|---" * (len(methods) + 1) + "|",
        *(
            f"| {title} | {' | '.join(comparison.cell(own, key) for own in methods.values())} |"
            for key, title in heads.items()
        ),
        *comparison.verdict(methods, heads, heads),
        "",
        "The unerased model by the same probes: "
        + "; ".join(
            f"{name} {comparison.cell(rows[BASELINE], f'drawn.{name}')}"
            for name in PROBES
            if f"drawn.{name}" in rows[BASELINE]["figures"]
        )
        + ".",
        "",
        *(f"{name[0].upper()}{name[1:]}: {says}." for name, says in results["disclosed"].items()),
    ]
    return "\n".join([*lines, ""])


def figures(own: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures over concepts, from those by concept."""
    names = dict.fromkeys(name for of_one in own.values() for name in of_one)
    found = {name: share_over([outcomes(of_one, name) for of_one in own.values()]) for name in names}
    return {name: estimate.to_json() for name, estimate in found.items()}


if __name__ == "__main__":
    main()
