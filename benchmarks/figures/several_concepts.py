"""Several concepts at once: one eraser each, all attached together, on the bundled model.

    python benchmarks/figures/several_concepts.py --out docs/results/several_concepts.json

For 1, 2, 5 and 10 concepts: of the erased concepts' direct prompts in which the unerased model draws them, the share in
which they are still drawn; and of unrelated prompts, that name none of the ten, the share with the object recognised,
its change (paired by seed), and the share of pictures that kept every bit. Canvas's prompts and seeds.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from excise import reference
from excise.bench.canvas.families import cases
from excise.bench.canvas.suite import Canvas
from excise.bench.machine import machine
from excise.bench.statistics import in_percent, paired_difference, share
from excise.bench.suite import Case
from excise.files import write_atomic
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.snce import fit

CONCEPTS = ("gun", "knife", "cat", "rocket", "pizza", "tiger", "cigarette", "tree", "guitar", "cow")
COUNTS = (1, 2, 5, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20, help="direct prompts a concept; unrelated ones five times as many")
    parser.add_argument("--out", type=Path, default=Path("docs/results/several_concepts.json"))
    options = parser.parse_args()
    canvas, pipe = Canvas(), reference.load()
    direct = [case for name in CONCEPTS for case in family(name, "direct", options.n)]
    others = unrelated(5 * options.n)
    asked = [*direct, *others]
    before = canvas.draw(pipe, asked)
    seen = canvas.judge(asked, before)
    config = SNCEConfig(sae=str(reference.sae_folder()))
    erasers = {name: fit(pipe, canvas.concept(name), config) for name in CONCEPTS}
    told = {"command": f"python benchmarks/figures/several_concepts.py --n {options.n}", "machine": machine()}
    told |= {"date": datetime.date.today().isoformat()}
    rows: list[dict[str, Any]] = []
    for count in COUNTS:
        erased = CONCEPTS[:count]
        with ExitStack() as stack:
            for name in erased:
                stack.enter_context(erasers[name].attach(pipe))
            after = canvas.draw(pipe, asked)
        judged = canvas.judge(asked, after)
        pairs = list(zip(asked, seen, judged, strict=True))
        named = [(plain, own) for case, plain, own in pairs if case.family == "direct" and case.concept in erased]
        still = [own["target"] for plain, own in named if plain["target"]]
        kept = [(all(plain["kept"]), all(own["kept"])) for case, plain, own in pairs if case.family == "unrelated"]
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
        write_atomic(options.out, json.dumps(told | {"rows": rows}, indent=1) + "\n")
        write_atomic(options.out.with_suffix(".md"), page(told, rows))


COLUMNS = {
    "still_drawn": "erased concepts still drawn",
    "others_delta": "unrelated objects, change",
    "unrelated_identical": "unrelated pictures identical",
}


def page(told: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures as a table, in per cent with their 95 % intervals."""
    lines = [
        "# Several concepts at once",
        "",
        f"`{told['command']}`, {told['date']}, {told['machine']}. One SNCE eraser each, defaults, all attached",
        "together to the bundled model. Per cent, 95 % intervals (Wilson; for the change Newcombe, paired by seed).",
        "",
        f"| concepts | {' | '.join(COLUMNS.values())} |",
        "|---" * (len(COLUMNS) + 1) + "|",
        *(f"| {len(row['concepts'])} | {' | '.join(in_percent(row[name]) for name in COLUMNS)} |" for row in rows),
        "",
        f"In this order: {', '.join(rows[-1]['concepts'])}.",
    ]
    return "\n".join(lines) + "\n"


def family(concept: str, name: str, n: int) -> list[Case]:
    """Canvas's first n cases of one family of a concept."""
    return [case for case in cases(concept, n) if case.family == name]


def unrelated(n: int) -> list[Case]:
    """Unrelated cases of the ten concepts in turn, without those that name another of the ten."""
    rows = [case for name in CONCEPTS for case in family(name, "unrelated", n)]
    return sorted((case for case in rows if not set(case.keeps) & set(CONCEPTS)), key=lambda case: case.seed)[:n]


if __name__ == "__main__":
    main()
