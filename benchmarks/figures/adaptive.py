"""SNCE's gate under attack: prefixes optimised with the gate's own gradient, and with three others in its place.

    python benchmarks/figures/adaptive.py

Writes docs/results/adaptive.json and .md. On Canvas's standard concepts, two prompts each, against the default eraser.
Two to five minutes a concept on one core; concepts that are done are kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import excise
from excise import reference
from excise.app.bench.provenance import by_concept, in_words, provenance
from excise.bench.attacks.prefix import ADAPTIVE, PrefixConfig, prefix_attack
from excise.bench.attacks.ring_a_bell import vocabulary
from excise.bench.canvas.families import attacked
from excise.bench.canvas.sizes import STANDARD
from excise.bench.canvas.suite import Canvas
from excise.erasers.gates import attacking
from excise.statistics import in_percent, share_over, sign_flip

COMMAND = "python benchmarks/figures/adaptive.py"
BUDGET = PrefixConfig(match="model", iterations=20, batch=4)
"""P4D's, as in peers.md."""
PROMPTS = 2
"""Prompts a concept: 32 in all."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/adaptive.json"))
    parser.add_argument("--concepts", default=",".join(STANDARD))
    options = parser.parse_args()
    pipe, names = reference.load(), options.concepts.split(",")
    origin = partial(provenance, COMMAND, ["snce"])
    print(page(by_concept(options.out, names, partial(measured, pipe), page, origin)))


def measured(pipe: Any, name: str) -> list[dict[str, Any]]:
    """Return, for each prompt and gradient, the prompt found, its loss, whether it opens the gate and what is seen."""
    canvas, concept = Canvas(), Canvas().concept(name)
    words, rows = vocabulary(pipe.tokenizer, concept.mentions), []
    with excise.erase(pipe, concept).attach(pipe):
        for case in attacked(name, "adaptive", PROMPTS):
            latents = canvas.latents(pipe, [case])
            for gradient in ("exact", *ADAPTIVE):
                budget = replace(BUDGET, gradient=gradient, seed=case.seed)
                prompt, loss = prefix_attack(pipe, case.prompt, latents, words, budget)
                with attacking("exact") as gates:
                    pipe.encode_prompt(prompt, "cpu", 1, False)
                found = replace(case, prompt=prompt)
                (seen,) = canvas.judge([found], canvas.draw(pipe, [found]).pixels)
                rows.append(
                    {
                        "gradient": gradient,
                        "prompt": prompt,
                        "loss": round(loss, 6),
                        "opened": max(map(float, gates.excess)) > 0,
                        "target": seen["target"],
                        "second": seen["second"]["target"],
                    }
                )
    return rows


def page(results: Mapping[str, Any]) -> str:
    """Return the page."""
    concepts = results["concepts"]
    rows = {name: by_gradient(found) for name, found in concepts.items()}
    alike = ("exact", "straight-through", "soft")
    found = [
        {row["prompt"] for row in some}
        for own in rows.values()
        for some in zip(*(own[one] for one in alike), strict=True)
    ]
    same, every = sum(len(prompts) == 1 for prompts in found), len(found)
    lines = [
        "# The gate under attack",
        "",
        f"{in_words(results, COMMAND)}.",
        f"SNCE's defaults on {', '.join(concepts)} ({len(concepts)} of {len(STANDARD)} standard concepts); {PROMPTS}",
        f"prompts each. P4D's search ({BUDGET.length} tokens, {BUDGET.iterations} iterations, {BUDGET.batch} noised",
        "pictures) with the gate's own gradient (exact), a loss that closes the gate (hinge), the gradient of",
        "an open gate (straight-through), and that of a sigmoid instead of its step (soft, BPDA). While the gate",
        f"stays open, the last two search as exact does: they found the same prompt in {same} of {every} cases. Per",
        "cent, with the 95 % interval of the mean over concepts (a bootstrap over concepts, widened to Wilson's over",
        "all prompts if they agree). The last row takes, for each prompt, the search with the smallest loss of the",
        "three: it is Canvas's family `adaptive`. Every prompt counts, whether or not the unerased model generates the",
        "concept from it.",
        "",
        "| gradient | target generated | by either judge | gate left closed | prompts |",
        "|---|---|---|---|---|",
    ]
    for gradient in next(iter(rows.values())):
        lines.append(line(gradient, [own[gradient] for own in rows.values()]))
    changes = [shown(own["adaptive"]) - shown(own["exact"]) for own in rows.values()]
    lines += [
        "",
        f"Adaptive minus exact, by the first judge: {100 * fmean(changes):+.1f} points (sign-flip test over",
        f"{len(changes)} concepts: p = {sign_flip(changes):.2g}).",
    ]
    return "\n".join([*lines, ""])


def by_gradient(found: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return one concept's rows by gradient, and under `adaptive` the best of each prompt's adaptive ones."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        rows.setdefault(row["gradient"], []).append(row)
    prompts = zip(*(rows[gradient] for gradient in ADAPTIVE), strict=True)
    return rows | {"adaptive": [min(each, key=lambda row: row["loss"]) for each in prompts]}


def shown(rows: list[dict[str, Any]]) -> float:
    """Return the share of rows whose target is generated."""
    return fmean(row["target"] for row in rows)


def line(name: str, rows: list[list[dict[str, Any]]]) -> str:
    """Return a row of the table, from the rows of each concept."""
    shares = (
        [[row["target"] for row in some] for some in rows],
        [[row["target"] or row["second"] for row in some] for some in rows],
        [[not row["opened"] for row in some] for some in rows],
    )
    cells = [in_percent(share_over(some).to_json()) for some in shares]
    return f"| {name} | {' | '.join(cells)} | {sum(map(len, rows))} |"


if __name__ == "__main__":
    main()
