"""SNCE's departures from its paper, taken back one at a time, and other SAEs: on the frozen test set.

    python -m benchmarks.figures.ablations --work build/ablations

Nothing is chosen here: what it prints changes no default. Each variant is the default but for one thing. It writes
docs/results/ablations.json and .md after each concept, and an interrupted call goes on. A concept takes about two
minutes of one core; the other SAEs are trained in the working folder first.

Text states that were seen before, bit for bit, give the picture that they gave, which is not generated again.
"""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.figures import comparison
from excise import reference
from excise.app.bench.provenance import in_words, provenance
from excise.app.training.text import BUNDLED, recipe_prompts, train_sae
from excise.bench.attacks.vocabulary import ranked_words
from excise.bench.canvas.captioned import is_style
from excise.bench.canvas.families import cases, near_synonyms, synonyms_of_others
from excise.bench.canvas.metrics import RULES, Rule, counted, still_drawn
from excise.bench.canvas.sizes import FROZEN
from excise.bench.canvas.suite import Canvas
from excise.bench.suite import Picture
from excise.errors import ExciseError
from excise.files import read_json, sha256, write_atomic
from excise.methods.configs.sae import SNCEConfig
from excise.methods.prompt_codes import Reading, cached_codes
from excise.methods.sae.finding import Found, find
from excise.methods.sae.snce import fit
from excise.sae import TopKSAE, load
from excise.sites import PRESETS
from excise.sites.site import encoder_of, tokenizer_of
from excise.statistics import share_over

COMMAND = "python -m benchmarks.figures.ablations"
PROMPTS, NEAREST = 4, 8
"""Prompts a family and concept; near synonyms of other objects a concept, as many as the frozen set has."""
WRITTEN = ("direct", "synonym", "mixed", "unrelated")
HEADS = {
    "ua": "target gone",
    "asr.synonym": "own synonyms still generated",
    "mixed": "target gone, partner kept",
    "near_synonym": "others' synonyms kept",
    "ira": "others kept",
    "background": "background kept",
    "identical": "unrelated identical",
}
RULE: dict[str, Rule] = {name: RULES.get(name, still_drawn("synonym")) for name in HEADS}


@dataclass(frozen=True)
class Variant:
    """One change of the default."""

    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    lead: bool = True
    """Whether the first state is left alone."""
    sae: str = ""
    """SAE of `SAES`; empty for the bundled one."""


SAES = {
    "m = 4 d, k = 32": replace(BUNDLED, expansion=4, k=32),
    "m = 4 d": replace(BUNDLED, expansion=4),
    "k = 32": replace(BUNDLED, k=32),
    "seed 1": replace(BUNDLED, seed=1),
    "seed 2": replace(BUNDLED, seed=2),
}
"""Training settings of the other SAEs; the bundled one has m = 8 d, k = 8 and seed 0."""
VARIANTS = {
    "snce": Variant("the default"),
    "gate=threshold": Variant("gate: each state decides for itself", {"gate": "threshold"}),
    "gate=relu": Variant("gate: none", {"gate": "relu"}),
    "gate=topk": Variant("gate: the SAE's TopK, as in the paper", {"gate": "topk"}),
    "unit=code,lam=0.8": Variant("unit: the neuron's code, λ the paper's", {"unit": "code", "lam": 0.8}),
    "unit=code,lam=1.75": Variant(
        "unit: the neuron's code, λ the best on tuning concepts", {"unit": "code", "lam": 1.75}
    ),
    "lam=1": Variant("λ: exactly what the word changes", {"lam": 1.0}),
    "source=concept,lam=0.8": Variant(
        "source: the concept's codes, in every prompt", {"source": "concept", "lam": 0.8}
    ),
    "lead=0": Variant("lead: the first state is calibrated and edited too", lead=False),
    "margin=0.1": Variant("margin: 0.1", {"margin": 0.1}),
    "margin=0.3": Variant("margin: 0.3", {"margin": 0.3}),
    "tolerance=0": Variant("tolerance: none, as in the paper", {"tolerance": 0.0}),
    "k=10": Variant("neurons: the ten first ones", {"k": 10}),
    **{name: Variant(f"another SAE: {name}", sae=name) for name in SAES},
}
"""By label. The paper's method is all of gate, unit, source, lead and tolerance at once: `snce:preset=paper`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/ablations"), help="folder of the other SAEs")
    parser.add_argument("--out", type=Path, default=Path("docs/results/ablations.json"))
    parser.add_argument("--variants", default=";".join(VARIANTS), help="labels, separated by semicolons")
    parser.add_argument("--concepts", default=",".join(FROZEN))
    options = parser.parse_args()
    results: dict[str, Any] = read_json(options.out) if options.out.exists() else {"concepts": {}, "trained": {}}
    pipe, labels = reference.load(), options.variants.split(";")
    folders = {label: trained(pipe, VARIANTS[label].sae, options.work) for label in labels}
    for name in options.concepts.split(","):
        found = results["concepts"].setdefault(name, {})
        missing = [label for label in labels if label not in found]
        if not missing:
            continue
        with cached_codes():
            concept = Measured(pipe, name)
            for label in missing:
                found[label] = concept.under(VARIANTS[label], folders[label])
        results["trained"] |= {
            own: sha256(folders[label] / "sae.safetensors") for label in labels if (own := VARIANTS[label].sae)
        }
        results |= provenance(COMMAND, ["snce"])
        write_atomic(options.out, json.dumps(results, indent=1) + "\n")
        write_atomic(options.out.with_suffix(".md"), page(results))
        print(name, flush=True)
    write_atomic(options.out.with_suffix(".md"), page(results))
    print(page(results))


def trained(pipe: Any, name: str, work: Path) -> Path:
    """Return the folder of an SAE of `SAES`, trained as the bundled one if it is not there, or the bundled one's."""
    if not name:
        return reference.sae_folder()
    folder = work / re.sub(r"[^\w=]+", "-", name)
    if not (folder / "sae.safetensors").exists():
        prompts, about = recipe_prompts("reference")
        train_sae(pipe, PRESETS["reference"][0], prompts, SAES[name], folder, card=about)
    return folder


class Measured:
    """One concept's prompts, and what the judges see in the pictures of them so far."""

    def __init__(self, pipe: Any, name: str) -> None:
        self.pipe, self.canvas = pipe, Canvas(batch=8)
        self.concept = self.canvas.concept(name)
        self.rows = [case for case in cases(name, PROMPTS) if case.family in WRITTEN]
        if not is_style(name):
            ranked = ranked_words(pipe, self.concept, tuple(synonyms_of_others(name)))
            self.rows += near_synonyms(name, [near.word for near in ranked[:NEAREST]])
        self.plain = self.states()
        self.known: dict[tuple[str, bytes], dict[str, Any]] = {}
        self.before = self.seen(self.plain)
        self.found: dict[tuple[Path, float], Found] = {}

    def under(self, variant: Variant, folder: Path) -> dict[str, Any]:
        """Return each figure's hits, picture by picture, or why SNCE refuses the concept."""
        config, sae = SNCEConfig(**{"sae": str(folder), **variant.settings}), opened(folder)
        try:
            with leading(variant.lead), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if (key := (folder, config.tolerance)) not in self.found:
                    self.found[key] = find(self.pipe, sae, self.concept, config)
                eraser = fit(self.pipe, self.concept, config, sae=sae, found=self.found[key])
        except ExciseError as error:
            return {"refused": str(error)}
        with eraser.attach(self.pipe, sae=sae if config.gate == "topk" else None):
            edited = self.states()
            after = self.seen(edited)
        same = [one.equal(two) for one, two in zip(self.plain, edited, strict=True)]
        pictures = [
            Picture(case, seen, unerased, kept, Path(), Path())
            for case, seen, unerased, kept in zip(self.rows, after, self.before, same, strict=True)
        ]
        return {
            "neurons": list(eraser.edits[0].neurons),
            "weak": list(eraser.weak),
            **{key: [int(hit) for hit in counted(rule, pictures)] for key, rule in RULE.items()},
        }

    @torch.no_grad()
    def states(self) -> list[torch.Tensor]:
        """Return what the text encoder gives for each prompt `[1, 77, d]`, padded as for a picture."""
        tokenizer, encoder = tokenizer_of(self.pipe, "text_encoder"), encoder_of(self.pipe, "text_encoder")
        texts = [tokenizer(c.prompt, padding="max_length", truncation=True, return_tensors="pt") for c in self.rows]
        return [encoder(text.input_ids)[0].clone() for text in texts]

    def seen(self, states: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
        """Return what the judges see in each prompt's picture. The same states give the same picture."""
        keys = [(case.id, one.numpy().tobytes()) for case, one in zip(self.rows, states, strict=True)]
        new = {key: case for key, case in zip(keys, self.rows, strict=True) if key not in self.known}
        if new:
            drawn = list(new.values())
            verdicts = self.canvas.judge(drawn, self.canvas.draw(self.pipe, drawn).pixels)
            self.known |= dict(zip(new, verdicts, strict=True))
        return [self.known[key] for key in keys]


@cache
def opened(folder: Path) -> TopKSAE:
    """Return the SAE in a folder, loaded once."""
    return load(folder)


@contextmanager
def leading(kept: bool) -> Iterator[None]:
    """Let the fit see the first state as one that depends on the prompt, unless it is to be left alone."""
    if kept:
        yield
        return
    with patch.object(Reading, "lead", property(lambda self: 0)):
        yield


def page(results: Mapping[str, Any]) -> str:
    """Return the page."""
    by_label = {
        label: {name: found[label] for name, found in results["concepts"].items() if label in found}
        for label in VARIANTS
    }
    rows = {label: figures(found) for label, found in by_label.items() if found}
    lines = [
        "# What each departure from the paper does",
        "",
        f"{in_words(results, COMMAND)}.",
        f"On {len(results['concepts'])} of {len(FROZEN)} concepts of the frozen test set:",
        f"{', '.join(results['concepts'])}. Each row is the default but for what its name",
        "says; source=concept also reads codes by TopK, in the first state too, and counts λ in codes. Nothing was",
        f"chosen by these figures. {PROMPTS} prompts a family and concept, and the {NEAREST} synonyms of",
        "other objects that the text encoder finds nearest to the concept. Per cent, with the 95 % interval of the",
        "mean over concepts (a bootstrap over concepts, widened to Wilson's over all pictures if they agree), and the",
        "number of pictures. *Refused* are concepts for which SNCE made no eraser; they are in no figure of their row.",
        "",
        f"| | what is changed | {' | '.join(HEADS.values())} | refused |",
        "|---" * (len(HEADS) + 3) + "|",
    ]
    for label, own in rows.items():
        cells = " | ".join(comparison.cell(own, key) for key in HEADS)
        lines.append(
            f"| {label} | {VARIANTS[label].about} | {cells} | {len(own['refused'])} of {len(by_label[label])} |"
        )
    if waiting := [label for label in VARIANTS if label not in rows]:
        lines += ["", f"Not measured yet: {'; '.join(waiting)}."]
    lines += comparison.verdict(rows, HEADS, HEADS)
    if found := comparison.differences(rows, HEADS, HEADS):
        lines += ["", "## Differences", *found]
    return "\n".join(lines) + "\n"


def figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a variant's figures, over concepts and of each, as `excise.bench.results.results` has them."""
    done = {name: own for name, own in found.items() if "refused" not in own}
    return {
        "figures": {key: share_over([own[key] for own in done.values()]).to_json() for key in HEADS},
        "concepts": {
            name: {key: {"value": sum(own[key]) / len(own[key])} if own[key] else None for key in HEADS}
            for name, own in done.items()
        },
        "refused": {name: own["refused"] for name, own in found.items() if "refused" in own},
    }


if __name__ == "__main__":
    main()
