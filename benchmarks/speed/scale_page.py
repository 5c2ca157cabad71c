"""The page of scale.py's results, and the arithmetic of large runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from excise.app.bench.provenance import in_words

STEP_RATES = {"one at a time": 35.0, "16 at a time, compiled": 140.0}
"""Picture-steps a second of Stable Diffusion 1.x at 512 x 512 on one H100: 572 ms for 20 steps (onnxruntime's commit
09c9843), and about twice the 75 of an A100 on diffusers' page on torch 2.0."""
PROMPT_RATE = 97_600.0
"""Prompts a second on one H100: 24 tokens through nine layers of CLIP-L at 300 TFLOP/s."""
VECTOR_RATES = {3072: 2e6, 65_536: 1.5e6, 1_048_576: 1e5}
"""Vectors a second that one H100 trains on, by neurons: operations and moved bytes for width 768."""
TOKENS = 24
"""Vectors of a prompt that is read without its padding."""
I2P, CAPTIONS = 4703, 3000
"""Pictures of a row of SNCE's Table 1. Stable Diffusion, and SNCE with 1, 10 and 20 neurons, are four rows."""
COCO = 30_000
"""Captions of COCO-30K, on which others compute FID."""
HOUR = 3600


def unlearn_canvas() -> tuple[int, int]:
    """Return pictures of one method, and different ones of the unerased model."""
    from excise.bench.protocols.unlearncanvas import UnlearnCanvas

    suite = UnlearnCanvas("styles.pth", "objects.pth")
    cases = [case for name in suite.concepts("full") for case in suite.cases(name, "full")]
    return len(cases), len({(case.prompt, case.seed) for case in cases})


def arithmetic() -> dict[str, Any]:
    """Return GPU-hours of pictures by way of drawing, and of prompts by what is done with them."""
    from excise.app.bench.reproduce import SUITES
    from excise.bench.protocols.suite import PROTOCOLS

    canvas, different = unlearn_canvas()
    tables = sum(PROTOCOLS[suite].rows for suite in {suite for number in (1, 3, 4) for suite in SUITES[number]})
    pictures = {
        "SNCE's Table 1, four rows": (4 * (I2P + CAPTIONS), 50),
        "SNCE's Tables 1, 3 and 4, one row": (tables, 50),
        "the same with COCO-30K": (tables - CAPTIONS + COCO, 50),
        "UnlearnCanvas, one method": (canvas, 100),
        "UnlearnCanvas, the unerased model": (different, 100),
    }
    return {
        "pictures": {
            name: {
                "pictures": n,
                "steps": steps,
                "hours": {way: n * steps / rate / HOUR for way, rate in STEP_RATES.items()},
            }
            for name, (n, steps) in pictures.items()
        },
        "prompts": {
            str(n): {
                "reading, or a scan": n / PROMPT_RATE / HOUR,
                **{f"training {m:,} neurons": n * TOKENS / rate / HOUR for m, rate in VECTOR_RATES.items()},
            }
            for n in (10**8, 10**9)
        },
    }


def page(results: Mapping[str, Any]) -> str:
    """Return the page."""
    started = [
        _row(f"`{name}`", f"{row['start']:.2f}", f"{row['items']:,.0f}") for name, row in results["engines"].items()
    ]  # fmt: skip
    counts = list(results["reading"]["rates"])
    rows = {
        "`neurons scan`, prompts/s": results["reading"],
        "`sae train --parallel data=N`, vectors/s": results["training"]["data"],
        "`sae train --parallel latents=N`, vectors/s": results["training"]["latents"],
    }
    grows = [
        _row(name, *(f"{row['rates'][n]:,.0f}" for n in counts), _spread(row["exponent"])) for name, row in rows.items()
    ]
    sums = arithmetic()
    ways = list(STEP_RATES)
    drawn = [
        _row(name, f"{row['pictures']:,}", f"{row['steps']}", *(f"{row['hours'][way]:,.1f}" for way in ways))
        for name, row in sums["pictures"].items()
    ]
    uses = list(sums["prompts"][str(10**8)])
    read = [_row(f"{int(n):,}", *(f"{row[use]:.1f}" for use in uses)) for n, row in sums["prompts"].items()]
    one, trained = (row["rates"]["1"] for row in (results["reading"], results["training"]["data"]))
    here = [_row(f"{n:,}", f"{n / one / HOUR:,.0f}", f"{n * TOKENS / trained / HOUR:,.0f}") for n in (10**8, 10**9)]
    return "\n".join([
        "# What scaling costs",
        "",
        f"{in_words(results)}. Medians of {results['rounds']} rounds that take turns.",
        "How to use engines is in [From a laptop to a cluster](../how-to/scale.md).",
        "",
        "## Engines",
        "Start-up is the seconds until one item is made that only writes its file. The rate is that of",
        f"{results['items'] - 1} more such items. An item of real work takes seconds to minutes,",
        "next to which neither counts.",
        "",
        "| engine | start-up, s | items/s |",
        "|---|---|---|",
        *started,
        "",
        "## More processes",
        "One thread each, on the bundled model. The exponent is the slope of log rate over log processes, with",
        "quartiles over rounds: 1 is linear growth. `neurons scan` is without its start-up; a training's rate is",
        f"that of its steps: {results['expansion']} times as many neurons as the states are wide, batches of",
        f"{results['batch']} vectors.",
        "",
        f"| | {' | '.join(counts)} | exponent |",
        "|---" * (len(counts) + 2) + "|",
        *grows,
        "",
        "Ranks of a training wait for each other several times a step, and a step takes about a twentieth of a second",
        "here. `--parallel` is for longer steps, and for SAEs that one process has no room for.",
        "",
        "## Large runs, by arithmetic",
        "**None of this was run.** Hours of one H100 at public rates: Stable Diffusion 1.x at 512 × 512,",
        f"{STEP_RATES[ways[0]]:g} picture-steps a second one at a time (onnxruntime's commit 09c9843) and",
        f"{STEP_RATES[ways[1]]:g} for 16 at a time, compiled (about twice diffusers' figure for an A100). Fits and",
        "attacks are not in it.",
        "",
        f"| | pictures | steps | {' | '.join(ways)} |",
        "|---" * (len(ways) + 3) + "|",
        *drawn,
        "",
        f"Prompts of {TOKENS} tokens through nine layers of CLIP-L at {PROMPT_RATE:,.0f} a second, which is 300",
        "TFLOP/s; training at the rates that operations and memory allow. States are made again, not stored:",
        "CLIP-L makes them faster than a disk of 2 GB/s gives them back.",
        "",
        f"| prompts | {' | '.join(uses)} |",
        "|---" * (len(uses) + 1) + "|",
        *read,
        "",
        "Hours of one core of this machine for the bundled encoder, at the rates measured above. They grow with the",
        "processes as the exponents say.",
        "",
        f"| prompts | a scan | training on {TOKENS} vectors of each |",
        "|---|---|---|",
        *here,
        "",
    ])  # fmt: skip


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(value: Mapping[str, float]) -> str:
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"
