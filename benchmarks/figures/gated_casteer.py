"""The gate of casteer-gated on tuning concepts: how often it opens for pictures without the concept, and with it.

    python -m benchmarks.figures.gated_casteer

Writes docs/results/gated_casteer.json and .md. About four minutes a concept on one core; concepts that are done are
kept. Thresholds are calibrated on half of the pictures and tried on the other half, for many random halves.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from excise import reference
from excise.app.bench.provenance import by_concept, in_words, provenance
from excise.app.models.resolve import bundled_settings
from excise.bench.canvas.families import cases
from excise.bench.canvas.suite import Canvas
from excise.bench.suite import Case
from excise.concepts import from_templates
from excise.methods import method
from excise.methods.configs.steering import CASteerGatedConfig
from excise.methods.steering.casteer import directions
from excise.methods.steering.casteer_gated import controls, cross_fitted, level_exceeded_by, peaks, scales

COMMAND = "python -m benchmarks.figures.gated_casteer"
CONCEPTS = ("dog", "apple", "bus", "pastel")
"""Three objects and a style of Canvas's tuning concepts."""
SHARES = (0.05, 0.02, 0.01, 0.005)
"""Stated shares of pictures without the concept that open the gate."""
PICTURES, CALIBRATING, HALVES = 320, 160, 50
"""Pictures without the concept, those of them that thresholds are calibrated on, and how often they are drawn."""
FAMILIES = ("direct", "paraphrase", "mixed", "synonym")
PROMPTS = 8
"""Prompts a family and concept that show it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/gated_casteer.json"))
    parser.add_argument("--concepts", default=",".join(CONCEPTS))
    options = parser.parse_args()
    origin = partial(provenance, COMMAND, ["casteer-gated"])
    print(page(by_concept(options.out, options.concepts.split(","), partial(measured, reference.load()), page, origin)))


def measured(pipe: Any, name: str) -> dict[str, Any]:
    """Return, by stated share, the level and the shares of pictures above it, over random halves."""
    settings = bundled_settings()["casteer-gated"]
    config = CASteerGatedConfig(**{key: value for key, value in settings.items() if key != "false_openings"})
    found, timesteps = directions(pipe, Canvas().concept(name), config, "casteer-gated")
    many = from_templates(name, (name,), n=200, seed=1, controls=2 * PICTURES)
    without = controls(many, replace(config, controls=PICTURES))
    quiet = peaks(pipe, found, timesteps, without, config)
    rows = [case for case in cases(name, PROMPTS) if case.family in FAMILIES]
    loud = peaks(pipe, found, timesteps, [case.prompt for case in rows], config)
    shown = shows(pipe, rows, config)
    families = [case.family for case in rows]
    generator = torch.Generator().manual_seed(0)
    by_share: dict[str, list[dict[str, float]]] = {f"{share:g}": [] for share in SHARES}
    for _ in range(HALVES):
        order = torch.randperm(len(quiet), generator=generator)
        calibrating, other = quiet[order[:CALIBRATING]], quiet[order[CALIBRATING:]]
        scale, ratios = scales(calibrating), cross_fitted(calibrating)
        for share in SHARES:
            level = level_exceeded_by(share, ratios)
            own = {"level": level, "without": fmean(opened(other, scale, level))}
            above = opened(loud, scale, level)
            for family in dict.fromkeys(families):
                if kept := [a for a, f, s in zip(above, families, shown, strict=True) if f == family and s]:
                    own[family] = fmean(kept)
            by_share[f"{share:g}"].append(own)
    return {
        "pictures": len(quiet),
        "shown": {f: sum(s for g, s in zip(families, shown, strict=True) if g == f) for f in dict.fromkeys(families)},
        "shares": {
            share: {key: round(fmean(row[key] for row in halves), 5) for key in halves[0]}
            for share, halves in by_share.items()
        },
    }


def opened(seen: Tensor, scale: Tensor, level: float) -> list[float]:
    """Return 1 for each picture whose peaks `[pictures, sites, S]` open the gate, else 0."""
    return (seen > level * scale).flatten(1).any(1).float().tolist()


def shows(pipe: Any, rows: list[Case], config: CASteerGatedConfig) -> list[bool]:
    """Return whether the first judge sees the concept in the unerased picture of each prompt, from its seed here."""
    canvas = Canvas(steps=config.steps)
    seeded = [replace(case, seed=config.seed + n) for n, case in enumerate(rows)]
    return [bool(seen["target"]) for seen in canvas.judge(seeded, canvas.draw(pipe, seeded).pixels)]


def page(results: Mapping[str, Any]) -> str:
    """Return the page."""
    concepts = results["concepts"]
    counted = {family: sum(own["shown"].get(family, 0) for own in concepts.values()) for family in FAMILIES}
    lines = [
        "# The gate of casteer-gated",
        "",
        f"{in_words(results, COMMAND)}.",
        f"On {', '.join(concepts)}, tuning concepts. {PICTURES} pictures of prompts without the concept: thresholds",
        f"are calibrated on {CALIBRATING} of them for a stated share of false openings, and tried on the others, for",
        f"{HALVES} random halves. The other columns are pictures that show the concept:",
        f"{', '.join(f'{n} {family}' for family, n in counted.items())}.",
        "Per cent of pictures whose gate opens.",
        "",
        f"| concept | stated | without the concept | {' | '.join(FAMILIES)} | level |",
        "|---" * (len(FAMILIES) + 4) + "|",
    ]
    for name, own in concepts.items():
        for share, row in own["shares"].items():
            cells = [f"{100 * row[key]:.4g}" if key in row else "" for key in ("without", *FAMILIES)]
            lines.append(f"| {name} | {100 * float(share):g} | {' | '.join(cells)} | {row['level']:.2f} |")
    over = {share: [own["shares"][share] for own in concepts.values()] for share in map("{:g}".format, SHARES)}
    for share, rows in over.items():
        cells = [
            f"{100 * fmean(row[key] for row in rows if key in row):.4g}" if any(key in row for row in rows) else ""
            for key in ("without", *FAMILIES)
        ]
        lines.append(f"| mean | {100 * float(share):g} | {' | '.join(cells)} | {fmean(r['level'] for r in rows):.2f} |")
    default = f"{method('casteer-gated').Config().false_openings:g}"
    new = fmean(row["without"] for row in over[default])
    lines += [
        "",
        f"At the default, {100 * float(default):g} %, the gate opens for {100 * new:.2g} % of pictures without the",
        "concept that had no part in calibrating it, of the same kinds of prompts. [frozen.md](frozen.md) has the",
        "share of other pictures in which it does not (unrelated identical).",
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
