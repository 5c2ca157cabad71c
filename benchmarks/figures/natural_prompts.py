"""What an eraser changes of plain English: SNCE's erasers of the bundled model on thousands of natural sentences.

    python benchmarks/figures/natural_prompts.py
    python benchmarks/figures/natural_prompts.py --file prompts.txt --out build/own.json

No picture is generated: if every value that the text encoder hands to the U-Net is the same, so is the picture. Each
sentence is encoded once, and every eraser's edit is applied to the states at its Site, as its hook does. A part of
the sentences is encoded again with the eraser attached, and must change exactly where the edit does. The sentences
are WordNet's examples of how words are used (`apt-get install wordnet-base`), or a file's lines. Some of WordNet's were
among what the bundled text encoder and its SAE were trained on; none had a part in calibration or a choice. They are
read where they are and not copied: the results have counts alone.
Sentences that mention minors are left out.
"""

from __future__ import annotations

import argparse
import json
import random
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import excise
from excise import reference
from excise.app.bench.provenance import in_words, provenance
from excise.concepts import read_prompts
from excise.concepts.concept import mentioned
from excise.concepts.minors import names_minors
from excise.erasers import Eraser, SAEEdit
from excise.erasers.artefact.verdict import WeakEraser
from excise.erasers.proof.effects import conditional_states
from excise.files import write_atomic
from excise.pipeline import Pipeline
from excise.reference.training.text_corpus import PARTS, glosses, quoted
from excise.sites import capture
from excise.statistics import in_percent, wilson

CONCEPTS = ("gun", "cat", "car", "pizza", "rose", "umbrella", "horse", "house", "pastel", "ink", "bold", "cartoon")
"""Eight objects and four styles."""
BATCH = 64
AGAIN = 32
"""Sentences of either kind that are encoded again with the eraser attached."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="file of prompts instead of WordNet's examples")
    parser.add_argument("--n", type=int, default=10_000, help="sentences, a random sample that is always the same")
    parser.add_argument("--concepts", default=",".join(CONCEPTS))
    parser.add_argument("--out", type=Path, default=Path("docs/results/natural_prompts.json"))
    options = parser.parse_args()
    source = f"lines of {options.file.name}" if options.file else "WordNet 3.0's example sentences"
    prompts, left_out = sampled(list(read_prompts(options.file)) if options.file else wordnet(), options.n)
    pipe = reference.load()
    command = "python benchmarks/figures/natural_prompts.py"
    results = provenance(command, ["snce"])
    results |= {"source": source, "prompts": len(prompts), "left_out": left_out, "concepts": {}}
    erasers = {name: made(pipe, name) for name in options.concepts.split(",")}
    for name, changed in changes(pipe, list(erasers.values()), prompts).items():
        results["concepts"][name] = counted(erasers[name], prompts, changed)
        results["concepts"][name]["encoded_again"] = confirmed(pipe, erasers[name], prompts, changed)
        print(name, results["concepts"][name], flush=True)
    write_atomic(options.out, json.dumps(results, indent=1) + "\n")
    write_atomic(options.out.with_suffix(".md"), page(results))


def made(pipe: Pipeline, name: str) -> Eraser:
    """Return SNCE's eraser of a concept, also if it is weak."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakEraser)  # named in the results
        return excise.erase(pipe, name)


def wordnet() -> list[str]:
    """Return WordNet's example sentences. Raises ExciseError if its database is not installed."""
    return list(dict.fromkeys(text for _, gloss in glosses(parts=sorted(PARTS)) for text in quoted(gloss, 3)))


def sampled(texts: Sequence[str], n: int) -> tuple[list[str], int]:
    """Return `n` of the texts that mention no minor, a fixed random sample, and how many mention one."""
    kept = [text for text in dict.fromkeys(texts) if not names_minors(text)]
    return random.Random(0).sample(kept, min(n, len(kept))), len(set(texts)) - len(kept)


@torch.no_grad()
def changes(pipe: Pipeline, erasers: Sequence[Eraser], prompts: Sequence[str]) -> dict[str, list[bool]]:
    """Return, by concept, whether the eraser changes any value of each prompt's states at its Site."""
    found: dict[str, list[bool]] = {eraser.concept: [] for eraser in erasers}
    (site,) = {edit.site for eraser in erasers for edit in eraser.edits}
    for batch in capture(pipe, [site], prompts, BATCH):
        states = batch.states[site]
        for eraser in erasers:
            (edit,) = eraser.edits
            assert isinstance(edit, SAEEdit)
            found[eraser.concept] += (edit.apply(states) != states).flatten(1).any(1).tolist()
    return found


@torch.no_grad()
def confirmed(pipe: Pipeline, eraser: Eraser, prompts: Sequence[str], changed: Sequence[bool]) -> int:
    """Encode prompts with and without the eraser, both kinds if there are, and return how many.

    Raises AssertionError if what the U-Net reads changes for another prompt than those in `changed`.
    """
    some = [n for kind in (True, False) for n in [n for n, own in enumerate(changed) if own == kind][:AGAIN]]
    texts = [prompts[n] for n in some]
    plain = conditional_states(pipe, texts)
    with eraser.attach(pipe):
        edited = conditional_states(pipe, texts)
    differ = [
        any(not torch.equal(new[n], old[n]) for new, old in zip(edited, plain, strict=True)) for n in range(len(some))
    ]
    assert differ == [changed[n] for n in some], eraser.concept
    return len(some)


def counted(eraser: Eraser, prompts: Sequence[str], changed: Sequence[bool]) -> dict[str, Any]:
    """Return how many prompts an eraser changes, of those that name its concept and of the others."""
    named = [bool(mentioned(text, eraser.mentions)) for text in prompts]
    return {
        "changed": sum(change and not own for change, own in zip(changed, named, strict=True)),
        "others": named.count(False),
        "changed_named": sum(change and own for change, own in zip(changed, named, strict=True)),
        "named": named.count(True),
        "controls": eraser.measured["fires"]["controls"],
        "weak": list(eraser.weak),
    }


def page(results: Mapping[str, Any]) -> str:
    """Return docs/results/natural_prompts.md."""
    found = results["concepts"]
    again = f"{sum(one['encoded_again'] for one in found.values()):,}"
    rows = []
    for name, one in found.items():
        changed = in_percent(wilson(one["changed"], one["others"]).to_json())
        named = f"{one['changed_named']} of {one['named']}"
        controls = "" if one["controls"] is None else f"{100 * one['controls']:.1f}"
        rows.append(f"| {name} | {one['changed']} of {one['others']:,} | {changed} | {named} | {controls} |")
    shares = {name: one["changed"] / one["others"] for name, one in found.items()}
    worst, best = max(shares, key=lambda name: shares[name]), min(shares, key=lambda name: shares[name])
    middle = sorted(shares.values())[(len(shares) - 1) // 2]
    weak = [name for name, one in found.items() if one["weak"]]
    return "\n".join(
        [
            "# Natural prompts",
            "",
            f"{in_words(results)}.",
            "",
            f"{results['prompts']:,} of {results['source']}, a random sample; {results['left_out']:,}",
            "that mention minors are left out. SNCE's erasers of the bundled model, with its defaults. *Changed* are",
            "sentences without the concept's words if any value that the U-Net reads differs; the others give the same",
            f"picture bit by bit. {again} were encoded again with an eraser attached, and changed where they had to.",
            "In brackets: Wilson's 95 % interval of the share. *Controls* is the share of the eraser's own",
            "control prompts that it changes: sentences of the bundled model's world, on which its threshold was",
            "calibrated.",
            "",
            "| concept | changed | % | changed, of those with its words | controls, % |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Half of the erasers change at most {100 * middle:.2f} % of the sentences; {best} changes the fewest and",
            f"{worst} the most, {100 * shares[worst]:.2f} %. The bundled encoder is small. It was distilled on words,",
            "definitions and about four in ten of WordNet's examples, and its SAE was trained on captions of its own",
            "small world and 4,000 of those texts. So some of these sentences are not new to either, and this says",
            "nothing of CLIP." + (f" Weak by `erase`'s own limits: {', '.join(weak)}." if weak else ""),
            "",
        ]
    )


if __name__ == "__main__":
    main()
