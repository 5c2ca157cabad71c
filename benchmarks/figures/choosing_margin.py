"""SNCE's margin on Canvas's tuning concepts: what each lets through, and what it takes along.

    python benchmarks/figures/choosing_margin.py
    python benchmarks/figures/choosing_margin.py --part others

Writes docs/results/choosing_margin.json and .md. About two minutes a concept on one core; concepts that are done are
kept. The margin moves only the threshold of the gate, and an open gate edits the same whatever the margin. So each
prompt is read and generated once, and every margin's figures are counted from that.

`--part others` tries two other ways on the same prompts at the default margin, from the text alone: the gate opens only
where the concept's neuron is louder than those of other objects, or half of the near synonyms are further controls.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excise import reference
from excise.app.bench.provenance import by_concept, in_words, provenance
from excise.bench.attacks.vocabulary import nearest_words, ranked_words
from excise.bench.canvas.families import cases, near_synonyms, synonyms_of_others, worded
from excise.bench.canvas.sizes import TUNING
from excise.bench.canvas.suite import Canvas
from excise.bench.suite import Case
from excise.concepts.words import OBJECTS
from excise.erasers import SAEEdit
from excise.erasers.hooks.context import unedited
from excise.files import write_atomic
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
    parser.add_argument("--part", choices=("margins", "others"), default="margins")
    options = parser.parse_args()
    pipe, sae, names = reference.load(), load(reference.sae_folder()), options.concepts.split(",")
    if options.part == "others":
        results = json.loads(options.out.read_text())
        results["others"] = {**provenance(f"{COMMAND} --part others", ["snce"]), "leads": leads(pipe, sae, results)}
        write_atomic(options.out, json.dumps(results, indent=1) + "\n")
        write_atomic(options.out.with_suffix(".md"), page(results))
        print(page(results))
        return

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


@torch.no_grad()
def leads(pipe: Any, sae: Any, results: Mapping[str, Any]) -> dict[str, list[tuple[float, float] | None]]:
    """Return by how much the concept's neuron leads those of all other objects, for every prompt whose gate is open.

    Codes count in units of the typical code. The first number compares the loudest states of the prompt, the second
    the codes of one state, the one where the concept leads most. A style's neuron has no other object to lead.
    """
    config, canvas = SNCEConfig(sae=str(reference.sae_folder())), Canvas()
    edits: dict[str, SAEEdit] = {name: fit(pipe, canvas.concept(name), config, sae=sae).edits[0] for name in OBJECTS}  # type: ignore[misc]
    found = dict[str, list[tuple[float, float] | None]]()
    for name, measured in results["concepts"].items():
        rows = measured["prompts"]
        if name not in edits:
            found[name] = [None] * len(rows)
            continue
        own = edits[name]
        others = [edit for other, edit in edits.items() if other != name and edit.neurons != own.neurons]
        every = SAEEdit.from_sae(sae, own.site, list(dict.fromkeys(n for e in (own, *others) for n in e.neurons)))
        typical = {edit.neurons[0]: float(edit.typical[0]) for edit in (*others, own)}
        units = torch.tensor([typical[n] for n in every.neurons])
        codes = (
            Reading.of(pipe, sae, every, [row["prompt"] for row in rows]).preacts[:, own.lead :].clamp(min=0) / units
        )
        threshold = measured["thresholds"][str(config.margin)] / measured["typical"]
        found[name] = [
            lead_of(states[:, 0], states[:, 1:], threshold)
            if row["loudest"] > threshold * measured["typical"]
            else None
            for row, states in zip(rows, codes, strict=True)
        ]
        print(name, len(rows), flush=True)
    return found


def lead_of(own: Tensor, others: Tensor, threshold: float) -> tuple[float, float]:
    """Return the lead of `own` codes `[T]` over `others` `[T, n]`: of the loudest, and in the best open state."""
    loudest = others.amax(1).clamp(min=1e-6)
    whole = float(own.max() / loudest.max())
    return round(min(whole, 99.0), 3), round(min(float((own / loudest)[own > threshold].max()), 99.0), 3)


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


def other_ways(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines about the two other ways."""
    yield f"\n## Two other ways\n\n{in_words(results['others'])}."
    yield "Both keep the default margin. `others`: the gate opens only if the concept's neuron, in units of its typical"
    yield "code, is at least so many times as loud as that of any other of the 40 objects. The loudest states of the"
    yield "prompt are compared, or the codes of one state; styles are left as they are. `controls`: half of each"
    yield "concept's near synonyms are further controls, which all stay silent. The other half is counted, then both"
    yield "change places.\n"
    yield "| way | captions | own synonyms | words | nearest lost | all near synonyms lost |"
    yield "|---|---|---|---|---|---|"
    margin = SNCEConfig().margin

    def line(name: str, closed: Callable[[str, int, Mapping[str, Any]], bool | None]) -> str:
        parts: dict[str, list[bool]] = {"captions": [], "synonym": [], "vocabulary": [], "nearest": [], "near": []}
        for concept, found in results["concepts"].items():
            for n, row in enumerate(found["prompts"]):
                if (shut := closed(concept, n, row)) is None:
                    continue
                kept = True if shut or row["loudest"] <= found["thresholds"][str(margin)] else row["erased"]
                if row["family"] == "near-synonym":
                    parts["near"].append(not kept)
                    parts["nearest"] += [not kept] if row["rank"] < NEAREST else []
                else:
                    parts[row["family"] if row["family"] in parts else "captions"].append(kept)
        cells = [f"{in_percent(share(part).to_json())} of {len(part)}" for part in parts.values()]
        return f"| {name} | {' | '.join(cells)} |"

    def led(by: float, state: bool) -> Callable[[str, int, Mapping[str, Any]], bool]:
        leads = results["others"]["leads"]
        return lambda concept, n, row: leads[concept][n] is not None and leads[concept][n][state] < by

    yield line("as it is", lambda *_: False)
    for by in (0.25, 0.5, 1.0):
        yield line(f"others, {by:g} times, the loudest states", led(by, False))
    for by in (0.25, 0.5, 1.0):
        yield line(f"others, {by:g} times, one state", led(by, True))
    halves = {concept: halved(found["prompts"]) for concept, found in results["concepts"].items()}
    for half in (0, 1):

        def controlled(concept: str, n: int, row: Mapping[str, Any], half: int = half) -> bool | None:
            control = halves[concept][half]
            return None if n in control else row["loudest"] <= max(control.values(), default=0.0)

        yield line(f"controls, half {half + 1}", controlled)
    yield OTHER_WAYS


def halved(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[int, float], dict[int, float]]:
    """Return the numbers of every other near synonym's row with its loudest code, and those of the rest."""
    near = {n: row["loudest"] for n, row in enumerate(rows) if row["family"] == "near-synonym"}
    return dict([*near.items()][::2]), dict([*near.items()][1::2])


OTHER_WAYS = """
Two near synonyms are lost as it is. To ask that the concept's neuron be the loudest in one state saves both, and lets
through no more captions and 3 more words. Every margin that saves both costs more, but two prompts show no more than a
direction. An eraser would need the rows of 39 other neurons, and a prompt that makes another object loud in the same
states would get past it. So it is not built. To compare the loudest states of the whole prompt lets captions with two
objects through. Further controls spare none of the other half."""


def page(results: Mapping[str, Any]) -> str:
    """Return the page."""
    lines = [
        "# Choosing SNCE's margin",
        "",
        f"{in_words(results, COMMAND)}.",
        f"On the tuning concepts ({', '.join(results['concepts'])}), which no comparison of methods reports.",
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
            "Concepts that had no part in this lose more of them ([frozen.md](frozen.md), others' synonyms kept).",
            *(other_ways(results) if "others" in results else ()),
            "",
        ]
    )


if __name__ == "__main__":
    main()
