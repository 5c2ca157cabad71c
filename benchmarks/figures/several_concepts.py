"""Several concepts at once, on the bundled model: one eraser for each, all attached together.

    python benchmarks/figures/several_concepts.py --out docs/results/several_concepts.json

The script measures 1, 2, 5 and 10 concepts with Canvas's prompts and seeds:

- on direct prompts of the erased concepts from which the unerased model generates them: the share that still does;
- on unrelated prompts, which name none of the ten: the change of the share with the object recognised (paired by seed),
  and the share of bit-identical pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from excise import reference
from excise.app.bench.provenance import in_words, provenance
from excise.bench.canvas.families import cases
from excise.bench.canvas.suite import Canvas
from excise.bench.suite import Case
from excise.files import write_atomic
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.snce import fit
from excise.statistics import in_percent, paired_difference, share

CONCEPTS = ("gun", "knife", "cat", "rocket", "pizza", "tiger", "cigarette", "tree", "guitar", "cow")
COUNTS = (1, 2, 5, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20, help="direct prompts a concept; five times as many unrelated ones")
    parser.add_argument("--out", type=Path, default=Path("docs/results/several_concepts.json"))
    options = parser.parse_args()
    canvas, pipe = Canvas(), reference.load()
    direct = [case for name in CONCEPTS for case in family(name, "direct", options.n)]
    others = unrelated(5 * options.n)
    asked = [*direct, *others]
    before = canvas.draw(pipe, asked).pixels
    seen = canvas.judge(asked, before)
    config = SNCEConfig(sae=str(reference.sae_folder()))
    erasers = {name: fit(pipe, canvas.concept(name), config) for name in CONCEPTS}
    results = provenance(f"python benchmarks/figures/several_concepts.py --n {options.n}", ["snce"])
    rows: list[dict[str, Any]] = []
    for count in COUNTS:
        erased = CONCEPTS[:count]
        with ExitStack() as stack:
            for name in erased:
                stack.enter_context(erasers[name].attach(pipe))
            after = canvas.draw(pipe, asked).pixels
        judged = canvas.judge(asked, after)
        pairs = list(zip(asked, seen, judged, strict=True))
        named = [
            (plain, outcome) for case, plain, outcome in pairs if case.family == "direct" and case.concept in erased
        ]
        still = [outcome["target"] for plain, outcome in named if plain["target"]]
        kept = [
            (all(plain["kept"]), all(outcome["kept"])) for case, plain, outcome in pairs if case.family == "unrelated"
        ]
        same = [
            bool((a == b).all()) for case, a, b in zip(asked, before, after, strict=True) if case.family == "unrelated"
        ]
        rows.append(
            {
                "concepts": list(erased),
                "still_drawn": share(still).to_json(),
                "others_delta": paired_difference([b for b, _ in kept], [a for _, a in kept]).to_json(),
                "unrelated_identical": share(same).to_json(),
            }
        )
        print(count, rows[-1], flush=True)
        write_atomic(options.out, json.dumps(results | {"rows": rows}, indent=1) + "\n")
        write_atomic(options.out.with_suffix(".md"), page(results, rows))


COLUMNS = {
    "still_drawn": "erased concepts still generated",
    "others_delta": "unrelated objects, change",
    "unrelated_identical": "unrelated pictures identical",
}


def page(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page: the figures as a table, in per cent with 95 % intervals."""
    lines = [
        "# Several concepts at once",
        "",
        f"{in_words(results)}. One SNCE eraser for each concept, with "
        "defaults, all attached together to the bundled model. Per cent, 95 % intervals (Wilson; for the change",
        "Newcombe, paired by seed), and the number of pictures.",
        "",
        f"| concepts | {' | '.join(COLUMNS.values())} |",
        "|---" * (len(COLUMNS) + 1) + "|",
        *(f"| {len(row['concepts'])} | {' | '.join(numbered(row[name]) for name in COLUMNS)} |" for row in rows),
        "",
        f"The concepts in this order: {', '.join(rows[-1]['concepts'])}.",
    ]
    return "\n".join(lines) + "\n"


def numbered(figure: Mapping[str, Any]) -> str:
    """Return a figure with its interval and number of pictures."""
    return f"{in_percent(figure)}, {figure['n']}"


def family(concept: str, name: str, n: int) -> list[Case]:
    """Return Canvas's first n cases of one family of a concept."""
    return [case for case in cases(concept, n) if case.family == name]


def unrelated(n: int) -> list[Case]:
    """Return n unrelated cases of the ten concepts in turn, without those that name another of the ten."""
    rows = [case for name in CONCEPTS for case in family(name, "unrelated", n)]
    return sorted((case for case in rows if not set(case.keeps) & set(CONCEPTS)), key=lambda case: case.seed)[:n]


if __name__ == "__main__":
    main()
