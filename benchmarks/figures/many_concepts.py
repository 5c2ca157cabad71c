"""Many concepts at once, on the bundled model: an SNCE eraser of each, merged into one.

    python benchmarks/figures/many_concepts.py --work build/many_concepts

Objects come in the order of the bundled world, every fifth first, so that the first ten are of every kind; last come
all objects and styles. For each number of concepts it measures

- on direct prompts of the erased concepts from which the unerased model generates them: the share that still does;
- on prompts about objects that are not erased: the share that keeps its object, of those that had it;
- on all of Canvas's prompts about objects that are not erased: the share whose text states keep every bit. The same
  states give the same picture.

Erasers and finished rows are kept in the working folder and the results, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import several_concepts
from benchmarks.figures.several_concepts import family
from excise import reference
from excise.app.bench.provenance import in_words, provenance
from excise.bench.canvas.suite import Canvas
from excise.bench.suite import Case
from excise.concepts.concept import mentioned
from excise.erasers import Eraser, merge
from excise.files import read_json, write_atomic
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.snce import fit
from excise.reference.world import OBJECTS, STYLES
from excise.statistics import share

ORDER = (*(name for first in range(5) for name in OBJECTS[first::5]), *STYLES)
COUNTS = (1, 10, 20, len(OBJECTS), len(ORDER))
SPARED = 8
"""Prompts about each object whose text states are compared."""
COLUMNS = {
    "still_drawn": "erased concepts still generated",
    "others_kept": "other objects kept",
    "identical": "their text states identical",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2, help="direct prompts a concept")
    parser.add_argument("--others", type=int, default=20, help="prompts about other objects")
    parser.add_argument("--work", type=Path, default=Path("build/many_concepts"), help="folder of the erasers")
    parser.add_argument("--out", type=Path, default=Path("docs/results/many_concepts.json"))
    options = parser.parse_args()
    results: dict[str, Any] = read_json(options.out) if options.out.exists() else {}
    if results.get("n") != options.n or results.get("order") != list(ORDER):
        results = {"n": options.n, "order": list(ORDER), "rows": {}}
    measure = Measured(options.n, options.others, options.work)
    for count in COUNTS:
        if str(count) in results["rows"]:
            continue
        results["rows"][str(count)] = measure.row(ORDER[:count])
        results |= provenance(f"python benchmarks/figures/many_concepts.py --n {options.n}", ["snce"])
        write_atomic(options.out, json.dumps(results, indent=1) + "\n")
        write_atomic(options.out.with_suffix(".md"), page(results))
        print(count, results["rows"][str(count)], flush=True)
    print(page(results))


class Measured:
    """The prompts, and what the judges see in the unerased model's pictures of them."""

    def __init__(self, n: int, others: int, work: Path) -> None:
        self.canvas, self.pipe, self.work = Canvas(batch=8), reference.load(), work
        spared = [case for name in ORDER[: len(OBJECTS)] for case in family(name, "direct", SPARED)]
        self.spared = dict(zip(spared, self.states([case.prompt for case in spared]), strict=True))
        self.direct = [case for name in ORDER for case in family(name, "direct", n)]
        found = [case for name in ORDER[: len(OBJECTS)] for case in family(name, "unrelated", n)]
        self.others, self.wanted = found, others
        self.before: dict[str, dict[str, Any]] = {}

    def eraser(self, name: str) -> Eraser:
        """Return a concept's eraser, fitted once."""
        folder = self.work / name
        if not folder.exists():
            fit(self.pipe, self.canvas.concept(name), SNCEConfig(sae=str(reference.sae_folder()))).save(folder)
        return Eraser.load(folder)

    def row(self, erased: Sequence[str]) -> dict[str, Any]:
        """Return the figures of these concepts' merged erasers."""
        erasers = [self.eraser(name) for name in erased]
        eraser = merge(erasers) if len(erasers) > 1 else erasers[0]
        words = [word for one in erasers for word in (one.concept, *one.mentions)]
        direct = [case for case in self.direct if case.concept in erased]
        others = [case for case in self.others if not any(mentioned(case.prompt, (word,)) for word in words)]
        others = sorted(others, key=lambda case: case.seed)[: self.wanted]
        before = self.seen([*direct, *others])
        spared = [case for case in self.spared if not any(mentioned(case.prompt, (word,)) for word in words)]
        with eraser.attach(self.pipe):
            after, edited = self.judged([*direct, *others]), self.states([case.prompt for case in spared])
        still = [after[case.id]["target"] for case in direct if before[case.id]["target"]]
        kept = [all(after[case.id]["kept"]) for case in others if all(before[case.id]["kept"])]
        same = [bool(torch.equal(self.spared[case], states)) for case, states in zip(spared, edited, strict=True)]
        figures = {"still_drawn": still, "others_kept": kept, "identical": same}
        size = sum(map(len, eraser.pack().values()))
        found = {name: share(hits).to_json() if hits else None for name, hits in figures.items()}
        return {**found, "concepts": len(erased), "kilobytes_each": size / 1000 / len(erased)}

    def seen(self, asked: Sequence[Case]) -> dict[str, dict[str, Any]]:
        """Return what the judges see in the unerased model's pictures, by case. Each is generated once."""
        if new := [case for case in asked if case.id not in self.before]:
            self.before |= self.judged(new)
        return self.before

    def judged(self, asked: Sequence[Case]) -> dict[str, dict[str, Any]]:
        """Return what the judges see in the pictures of the pipeline as it is, by case."""
        rows = self.canvas.judge(list(asked), self.canvas.draw(self.pipe, list(asked)).pixels)
        return {case.id: row for case, row in zip(asked, rows, strict=True)}

    def states(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """Return the text encoder's last states of each prompt."""
        tokenizer, encoder = self.pipe.tokenizer, self.pipe.text_encoder
        found = []
        with torch.no_grad():
            for n in range(0, len(texts), 64):
                ids = tokenizer(list(texts[n : n + 64]), padding="max_length", truncation=True, return_tensors="pt")
                found += list(encoder(ids.input_ids)[0])
        return found


def page(results: Mapping[str, Any]) -> str:
    """Return the page: the figures as a table, in per cent with 95 % intervals."""
    lines = [
        "# Many concepts at once",
        "",
        f"{in_words(results)}. An SNCE eraser of each concept, with defaults, merged into one by",
        f"`excise merge`, on the bundled model; {results['n']} direct prompts a concept. The other columns are of",
        "prompts about objects that are not erased, and text states that keep every bit give the same picture.",
        "Per cent, with Wilson's 95 % interval and the number of pictures or prompts.",
        "",
        f"| concepts | {' | '.join(COLUMNS.values())} | kB each |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for row in results["rows"].values():
        cells = " | ".join(numbered(row[name]) for name in COLUMNS)
        lines.append(f"| {named(row['concepts'])} | {cells} | {row['kilobytes_each']:.1f} |")
    waiting = [named(count) for count in COUNTS if str(count) not in results["rows"]]
    return "\n".join([*lines, *(["", f"Not measured yet: {', '.join(waiting)}."] if waiting else [])]) + "\n"


def named(count: int) -> str:
    """Return a number of concepts in words."""
    objects, styles = len(OBJECTS), len(STYLES)
    return {objects: f"all {objects} objects", objects + styles: f"all {objects} objects and {styles} styles"}.get(
        count, f"{count}"
    )


def numbered(figure: Mapping[str, Any] | None) -> str:
    """Return a figure with its interval and number, or a dash if nothing is left to count."""
    return several_concepts.numbered(figure) if figure is not None else "–"


if __name__ == "__main__":
    main()
