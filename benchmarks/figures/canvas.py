"""SNCE on Canvas: a standard run with every attack, and sweeps over λ, k and both sources.

    python -m benchmarks.figures.canvas --work build/canvas

The script makes or resumes two runs in the working folder and writes docs/results/canvas.md and .json from them. The
first takes about an hour on two cores, the second about forty minutes. Both can be stopped at any time.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures.canvas_page import COMMAND, PAIRED, SWEPT_CONCEPTS, SWEPT_PROMPTS, page
from excise import reference
from excise.app.bench.provenance import provenance
from excise.app.bench.runs import report, resume, start
from excise.bench.canvas.suite import Canvas
from excise.files import write_atomic
from excise.reference.captions import caption
from excise.reference.world import BACKGROUNDS, OBJECTS, STYLES
from excise.statistics import share

LAMBDAS = (0.4, 0.8, 2.0, 4.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/canvas"), help="folder of the two runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results/canvas.json"))
    parser.add_argument("--page", action="store_true", help="only rewrite the page from the file")
    options = parser.parse_args()
    if options.page:
        write_atomic(options.out.with_suffix(".md"), page(json.loads(options.out.read_text())))
        return
    runs = {
        "standard": start(options.work / "standard", "canvas", "standard", ["snce"]),
        "sweep": start(
            options.work / "sweep",
            "canvas",
            "standard",
            swept(),
            SWEPT_CONCEPTS,
            {"prompts": SWEPT_PROMPTS, "searches": False},
        ),
    }
    results = provenance(COMMAND, ["snce"])
    for name, run in runs.items():
        resume(run, lambda done: print(".", end="", flush=True))
        results[name] = report(run)
    results["unasked"] = unasked()
    write_atomic(options.out, json.dumps(slim(results), indent=1) + "\n")
    write_atomic(options.out.with_suffix(".md"), page(results))
    print(page(results))


def swept() -> list[str]:
    """Return the methods of the sweep: λ for both sources, k at each source's λ, and λ in codes at the old default."""
    ours = ["snce", *(f"snce:lam={lam:g}" for lam in LAMBDAS), "snce:k=10", "snce:k=20", "snce:lam=1.75,unit=code"]
    paper = [f"snce:lam={lam:g},source=concept" for lam in LAMBDAS]
    return [*ours, *paper, "snce:k=10,lam=0.8,source=concept"]


def slim(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results; of the sweep's single concepts only the figures that are compared in pairs."""
    sweep = {
        label: {
            **method,
            "concepts": {
                concept: {key: figure for key, figure in own.items() if key in PAIRED or key.startswith("asr.")}
                for concept, own in method["concepts"].items()
            },
        }
        for label, method in results["sweep"]["methods"].items()
    }
    return {
        **results,
        "standard": results["standard"],
        "sweep": {**results["sweep"], "methods": sweep},
        "unasked": results["unasked"],
    }


def unasked(n: int = 160) -> dict[str, dict[str, Any]]:
    """Return how often the unerased model generates each style if the prompt names no style."""
    rng = random.Random("unasked styles")
    prompts = [caption(rng, (rng.choice(OBJECTS),), None, rng.choice(BACKGROUNDS)) for _ in range(n)]
    drawn = reference.generate(reference.load(), prompts, list(range(n)), steps=Canvas().steps, batch_size=Canvas.batch)
    seen = reference.judge()(drawn).style
    return {style: share([int(s) == k for s in seen]).to_json() for k, style in enumerate(STYLES)}


if __name__ == "__main__":
    main()
