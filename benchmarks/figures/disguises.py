"""Attacks by wording beyond Canvas's default families, by method, on the frozen test set.

    python -m benchmarks.figures.disguises --work build/disguises

Methods take the settings that docs/results/peers.md chose, or their defaults. It writes docs/results/disguises.json and
.md after each concept, which takes about three minutes of one core. Concepts that are done are kept. All in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.figures import comparison
from benchmarks.figures.probes import DTYPE, Measured, concept_by_concept, figures, other_commits, parsed
from excise.app.bench.provenance import in_words
from excise.bench.canvas.disguises import FURTHER
from excise.bench.canvas.sizes import FROZEN
from excise.bench.results import BASELINE

COMMAND = "python -m benchmarks.figures.disguises"
COMPARED = ("snce", "casteer", "casteer-gated", "snce+casteer-gated", "uce")
NAMES = tuple(family.name for family in FURTHER)
SETTINGS = {"prompts": 12, "searches": False}


def main() -> None:
    options = parsed(__doc__, "disguises", FROZEN)
    concept_by_concept(options, Measured(COMMAND, COMPARED, "canvas", "frozen", SETTINGS, NAMES), page)


def page(results: Mapping[str, Any]) -> str:
    """Return the page."""
    rows = {name: {"figures": figures(own), "concepts": own} for name, own in results["methods"].items()}
    drawn, concepts = rows[BASELINE]["concepts"].values(), list(rows[BASELINE]["concepts"])
    methods = {name: own for name, own in rows.items() if name != BASELINE}
    heads = {f"asr.{name}": name for name in NAMES if any(f"drawn.{name}" in one for one in drawn)}
    lines = [
        "# Disguises",
        "",
        f"{in_words(results, COMMAND)}.",
        *other_commits(results),
        f"On {', '.join(concepts)} ({len(concepts)} of the {len(FROZEN)} concepts of the frozen test set), in {DTYPE},",
        f"{SETTINGS['prompts']} prompts a cell and concept. What each family writes is in",
        "[Measure erasers](../how-to/bench.md). A concept can be tested in a family if the unerased model generates it",
        "from at least 30 % of the prompts; the second column says how many can. The third is how often the unerased",
        "model generates the target, over all concepts that have such prompts. Then, per cent of prompts that still",
        "generate it, of those from which the unerased model does; with the 95 % interval of the mean over concepts (a",
        "bootstrap over concepts, widened to Wilson's over all prompts if they agree), and the number of prompts.",
        "0 is best.",
        "",
        f"| family | testable | unerased | {' | '.join(methods)} |",
        "|---" * (len(methods) + 3) + "|",
        *(
            f"| {title} | {testable(drawn, key, title)} | {comparison.cell(rows[BASELINE], f'drawn.{title}')} "
            f"| {' | '.join(comparison.cell(own, key) for own in methods.values())} |"
            for key, title in heads.items()
        ),
        *comparison.verdict(methods, heads, heads),
        "",
        *(f"{name[0].upper()}{name[1:]}: {says}." for name, says in results["disclosed"].items() if "judge" in name),
    ]
    return "\n".join([*lines, ""])


def testable(concepts: Any, key: str, family: str) -> str:
    """Return on how many of the concepts that have prompts of a family it can be tested, and of how many."""
    asked = [one for one in concepts if f"drawn.{family}" in one]
    return f"{sum(one[key] is not None for one in asked)} of {len(asked)}"


if __name__ == "__main__":
    main()
