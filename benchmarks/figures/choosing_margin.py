"""SNCE's margin on Canvas's tuning concepts: what each lets through, and what it takes along.

    python benchmarks/figures/choosing_margin.py

Writes docs/results/choosing_margin.json and .md. About two minutes a concept on one core; concepts that are done are
kept. The margin moves only the threshold of the gate, and an open gate edits the same whatever the margin. So each
prompt is read and generated once, and every margin's figures are counted from that.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from excise import reference
from excise.app.bench.provenance import by_concept, in_words, provenance
from excise.bench.attacks.vocabulary import nearest_words, ranked_words
from excise.bench.canvas.families import cases, near_synonyms, synonyms_of_others, worded
from excise.bench.canvas.sizes import TUNING
from excise.bench.canvas.suite import Canvas
from excise.bench.suite import Case
from excise.erasers import SAEEdit
from excise.erasers.hooks.context import unedited
from excise.methods.configs.sae import SNCEConfig
from excise.methods.prompt_codes import Reading
from excise.methods.sae.finding import find
from excise.methods.sae.snce import fit
from excise.sae import load
from excise.statistics import in_percent, share

COMMAND = "python benchmarks/figures/choosing_margin.py"
MARGINS = (0.02, 0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3)
OWN = ("direct", "paraphrase", "synonym", "mixed", "description", "weighted", "repetition", "distractor")
"""Families whose prompts show the concept."""
PROMPTS = 8
"""Prompts a family and concept."""
NEAREST = 8
"""Near synonyms a concept that Canvas's family has at its standard size: those that the text encoder finds nearest."""
WORDS = 48
"""Words of the vocabulary, those nearest to the concept under the eraser of the largest margin."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/choosing_margin.json"))
    parser.add_argument("--concepts", default=",".join(TUNING))
    options = parser.parse_args()
    pipe, sae, names = reference.load(), load(reference.sae_folder()), options.concepts.split(",")

    def origin() -> dict[str, Any]:
        return {"margins": MARGINS, **provenance(COMMAND, ["snce"])}

    print(page(by_concept(options.out, names, partial(measured, pipe, sae), page, origin)))


def measured(pipe: Any, sae: Any, name: str) -> dict[str, Any]:
    """Return the threshold at each margin, and for each prompt its loudest pre-activation and what an open gate leaves.

    Prompts from which the unerased model does not generate what they ask for are left out.
    """
    canvas = Canvas()
    concept = canvas.concept(name)
    config = SNCEConfig(sae=str(reference.sae_folder()))
    found = find(pipe, sae, concept, config)
    erasers = {margin: fit(pipe, concept, replace(config, margin=margin), sae=sae, found=found) for margin in MARGINS}
    edits: dict[float, SAEEdit] = {margin: eraser.edits[0] for margin, eraser in erasers.items()}  # type: ignore[misc]
    widest, strictest = erasers[MARGINS[0]], erasers[MARGINS[-1]]
    rows = [case for case in cases(name, PROMPTS) if case.family in OWN]
    rows += near_synonyms(name, tuple(synonyms_of_others(name)))
    nearest = ranks(pipe, name)
    with strictest.attach(pipe):
        rows += worded(name, "vocabulary", [word.word for word in nearest_words(pipe, concept)[:WORDS]])
    edit = edits[MARGINS[0]]
    reading = Reading.of(pipe, sae, edit, [case.prompt for case in rows])
    loudest = reading.preacts[:, edit.lead :, 0].amax(1).tolist()
    # The widest gate's prompts suffice: no other margin changes more of them.
    opened = [case for case, code in zip(rows, loudest, strict=True) if code > float(edit.threshold[0])]
    before = dict(zip([case.id for case in rows], canvas.judge(rows, canvas.draw(pipe, rows).pixels), strict=True))
    with widest.attach(pipe):
        after = dict(
            zip([case.id for case in opened], canvas.judge(opened, canvas.draw(pipe, opened).pixels), strict=True)
        )
    return {
        "neuron": edit.neurons[0],
        "typical": float(edit.typical[0]),
        "thresholds": {str(margin): float(own.threshold[0]) for margin, own in edits.items()},
        "prompts": [
            {
                "family": case.family,
                "rank": nearest.get(case.prompt),
                "prompt": case.prompt,
                "loudest": round(code, 5),
                "erased": seen(case, after[case.id]) if case.id in after else None,
            }
            for case, code in zip(rows, loudest, strict=True)
            if seen(case, before[case.id])
        ],
    }


def ranks(pipe: Any, name: str) -> dict[str, int]:
    """Return the rank of every near synonym's prompt, from 0: how near the unerased encoder finds it."""
    words = tuple(synonyms_of_others(name))
    with unedited():
        ranked = [near.word for near in ranked_words(pipe, Canvas().concept(name), words)] if words else []
    prompts = {word: case.prompt for word, case in zip(words, near_synonyms(name, words), strict=True)}
    return {prompts[word]: rank for rank, word in enumerate(ranked)}


def seen(case: Case, verdicts: Mapping[str, Any]) -> bool:
    """Return whether either judge sees the target, or whether the first sees what must stay."""
    if case.family == "near-synonym":
        return all(verdicts["kept"])
    return bool(verdicts["target"] or verdicts["second"]["target"])


def counted(found: Mapping[str, Any], margin: float, families: Sequence[str], nearest: int | None = None) -> list[bool]:
    """Return what is seen under the eraser of this margin, of prompts that the unerased model generates."""
    threshold = found["thresholds"][str(margin)]
    drawn = [row for row in found["prompts"] if row["family"] in families]
    if nearest is not None:
        drawn = [row for row in drawn if row["rank"] < nearest]
    return [row["erased"] if row["loudest"] > threshold else True for row in drawn]


def page(results: Mapping[str, Any]) -> str:
    """Return the page."""
    lines = [
        "# Choosing SNCE's margin",
        "",
        f"{in_words(results, COMMAND)}.",
        f"On the tuning concepts ({', '.join(results['concepts'])}), which no other page reports.",
        "Per cent, with Wilson's 95 % intervals, of the prompts from which the unerased model generates the concept",
        "(near synonyms: their own object, which is lost if it is no longer recognised). `captions` are prompts with",
        "the concept's name, or a description of it. `words` are those of the vocabulary that come nearest to the",
        f"concept under an eraser of margin {max(results['margins']):g}, {WORDS} a concept. `nearest` are the",
        f"{NEAREST} synonyms of other objects that the text encoder finds nearest to the concept.",
        "",
        "| margin | threshold, of the typical code | captions | own synonyms | words | nearest lost | all near "
        "synonyms lost |",
        "|---|---|---|---|---|---|---|",
    ]
    for margin in results["margins"]:
        parts: dict[str, list[bool]] = {"captions": [], "synonym": [], "vocabulary": [], "nearest": [], "near": []}
        levels = []
        for found in results["concepts"].values():
            levels.append(found["thresholds"][str(margin)] / found["typical"])
            parts["captions"] += counted(found, margin, [name for name in OWN if name != "synonym"])
            parts["synonym"] += counted(found, margin, ["synonym"])
            parts["vocabulary"] += counted(found, margin, ["vocabulary"])
            parts["nearest"] += [not kept for kept in counted(found, margin, ["near-synonym"], NEAREST)]
            parts["near"] += [not kept for kept in counted(found, margin, ["near-synonym"])]
        cells = [f"{in_percent(share(part).to_json())} of {len(part)}" for part in parts.values()]
        lines.append(f"| {margin:g} | {min(levels):.2f} to {max(levels):.2f} | {' | '.join(cells)} |")
    return "\n".join(
        [
            *lines,
            "",
            f"The default is {SNCEConfig().margin:g}, the smallest: it loses at most one in ten of the nearest",
            "synonyms, and every step up lets more of the concept's own words through than it saves of other objects'.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
