"""Whether a metric without pictures predicts which SAE erases best: a sweep of SAEs, measured both ways.

    python benchmarks/figures/choosing_saes.py --work build/choosing

The script trains SAEs at three layers of the bundled text encoder, in three widths with two k each. It ranks them by
Safe-SAIL's metrics and others on pairs of ten concepts. It erases each concept with each SAE by SNCE's defaults, and
counts on Canvas what is gone and what is kept. For every metric, it reports Spearman's correlation over the SAEs within
each concept, the mean over concepts and its interval. It writes docs/results/choosing_saes.json and .md, takes about
two hours on two cores, and resumes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from excise import reference
from excise.app.bench.provenance import in_words, provenance
from excise.app.bench.runs import report, resume, start
from excise.app.models.resolve import parse_site
from excise.app.training.comparing import MEASURES, concepts_of
from excise.app.training.grid_sweep import Cell, grid, sweep
from excise.app.training.text import BUNDLED, recipe_prompts
from excise.files import write_atomic
from excise.statistics import cluster_bootstrap, clustered_spearman, in_percent, wilson

LAYERS, EXPANSIONS, KS = (1, 3, 5), (2, 4, 8), (8, 32)
CONCEPTS = ("gun", "knife", "cigarette", "cat", "tiger", "cow", "pizza", "rocket", "guitar", "tree")
CANVAS = {"prompts": 4, "searches": False, "only": ("direct", "mixed", "unrelated", "style"), "batch": 16}
GOOD = ("ua", "mixed", "ira", "cra")
"""Figures whose mean is the quality of an erasure. If SNCE refused, because no neuron was found or has an effect, it is
0."""
FURTHER = ("fvu", "dead")
"""Figures of an SAE that are the same for every concept."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/choosing"), help="folder of the SAEs and the run")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="vectors each SAE trains on")
    parser.add_argument("--prompts", type=int, default=4000, help="prompts to read for it")
    parser.add_argument("--out", type=Path, default=Path("docs/results/choosing_saes.json"))
    options = parser.parse_args()
    pipe = reference.load()
    cells = grid([parse_site(pipe, f"encoder.layers.{n}") for n in LAYERS], EXPANSIONS, KS)
    every, recipe = recipe_prompts("reference")
    few = every[:: -(-len(every) // options.prompts)]
    rows = sweep(
        pipe,
        cells,
        few,
        concepts_of(",".join(CONCEPTS)),
        replace(BUNDLED, tokens=options.tokens),
        options.work / "saes",
        card_of={"model": "bundled", "corpus": f"every third of {recipe['corpus']}"},
        trained=lambda cell, line: print(cell.name, flush=True) if line is None else None,
    )
    results = {
        **provenance("python benchmarks/figures/choosing_saes.py", ["snce"]),
        "tokens": options.tokens,
        "saes": [
            {**{key: row[key] for key in ("m", "k", "site", *FURTHER, *MEASURES)}, "name": Path(row["sae"]).name}
            for row in rows
        ],
    }
    quality = erased(options.work, cells)
    results["quality"] = quality
    results["correlations"] = correlations(rows, quality)
    write_atomic(options.out, json.dumps(results, indent=1) + "\n")
    write_atomic(options.out.with_suffix(".md"), page(results))
    print(page(results))


def erased(work: Path, cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Return how well each SAE erases each concept, from 0 to 1."""
    labels = {cell.name: f"snce:sae={work / 'saes' / cell.name}" for cell in cells}
    run = start(work / "run", "canvas", "quick", list(labels.values()), CONCEPTS, CANVAS)
    resume(run, lambda done: print(".", end="", flush=True))
    methods = report(run)["methods"]
    return {name: {c: _quality(methods[label]["concepts"].get(c)) for c in CONCEPTS} for name, label in labels.items()}


def _quality(figures: Mapping[str, Any] | None) -> float:
    if figures is None:
        return 0.0
    return statistics.fmean(figures[key]["value"] for key in GOOD)


def correlations(
    rows: Sequence[Mapping[str, Any]], quality: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, Any]]:
    """Return for each metric Spearman's correlation with the quality over SAEs: mean over concepts and interval."""
    names = [Path(row["sae"]).name for row in rows]
    good = [[quality[name][concept] for name in names] for concept in CONCEPTS]
    found = {}
    for metric in (*MEASURES, *FURTHER):
        by_concept = [
            [row[metric] if metric in FURTHER else _of(row, concept)[metric] for row in rows] for concept in CONCEPTS
        ]
        figure = clustered_spearman(by_concept, good)
        if not math.isnan(figure.value):
            found[metric] = figure.to_json()
    return found


def _of(row: Mapping[str, Any], concept: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(figures for figures in row["concepts"] if figures["name"] == concept)
    return found


def page(results: Mapping[str, Any]) -> str:
    """Return the page: the ranking and the correlations."""
    shown = ("i_cdf", "l0_t", "best", "probing_1", "tpp", "auroc", "carried", "fvu")
    lines = [
        "# Choosing an SAE without generating pictures",
        "",
        f"{in_words(results)}. {results['tokens']:,} training vectors an SAE.",
        "",
        f"{len(results['saes'])} SAEs of the bundled text encoder, best I_CDF first; means over {', '.join(CONCEPTS)}.",
        f"*erased* is the mean of Canvas's {', '.join(GOOD)} with SNCE's defaults, {CANVAS['prompts']} prompts",
        f"a family, and 0 if SNCE refused, with the 95 % interval of a bootstrap over the {len(CONCEPTS)} concepts",
        "(where all are at 100, Wilson's over as many trials).",
        "",
        f"| SAE | {' | '.join(shown)} | erased |",
        "|---" * (len(shown) + 2) + "|",
    ]
    for row in results["saes"]:
        cells = ["n/a" if row[key] is None else f"{row[key]:.3g}" for key in shown]
        erased = cluster_bootstrap([[value] for value in results["quality"][row["name"]].values()])
        low = erased.low if erased.low < erased.high else wilson(len(CONCEPTS), len(CONCEPTS)).low
        cells.append(in_percent(erased._replace(low=low).to_json()))
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    lines += [
        "",
        "The bundled SAE's shape is encoder.layers.5-x8-k8. It is the second worst here by *erased*, and was chosen",
        "before these figures, on nine objects, one of them also here, cow",
        "([decision 20](../decisions/0020-wide-sparse-sae.md)). Most of these concepts are reported elsewhere, so they",
        "may not choose another one. *erased* counts few pictures: a concept has",
        f"{CANVAS['prompts']} prompts a family.",
        "",
        "## Does it predict?",
        "Spearman's correlation of each metric with *erased* over the SAEs, within each concept: the mean over",
        "concepts and its 95 % interval from a bootstrap over concepts.",
        "",
        "| metric | correlation | concepts |",
        "|---|---|---|",
    ]
    for name, figure in sorted(results["correlations"].items(), key=lambda item: -abs(item[1]["value"])):
        interval = "" if figure["low"] is None else f" ({figure['low']:.2f} to {figure['high']:.2f})"
        lines.append(f"| {name} | {figure['value']:.2f}{interval} | {figure['n']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
