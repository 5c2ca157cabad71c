"""Comparison of SAEs by how well they isolate concepts. It needs prompt pairs, but no pictures or language model."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excise.app.models.resolve import sae_site
from excise.concepts import Concept, Pair, builtin, from_templates, read_rows
from excise.errors import ExciseError
from excise.files import read_text
from excise.methods.prompt_codes import features, stacked
from excise.neurons import PromptCodes
from excise.neurons.contrast import contrast
from excise.neurons.identification import identify
from excise.neurons.probing import Prompts, perturbation, sparse_probing
from excise.neurons.validation import activations, folds, validate
from excise.pipeline import Pipeline
from excise.sae import TopKSAE, card, load
from excise.sites import Site

PERMUTATIONS = 1000
MEASURES = (
    "i_cdf",
    "l0_t",
    "best",
    "concentration",
    "probing_1",
    "probing_5",
    "tpp",
    "auroc",
    "significant",
    "carried",
)
"""Measures to rank by. Higher is better."""


@dataclass(frozen=True)
class Comparing:
    """Settings of a comparison."""

    t: float = 0.5
    """L0,t counts neurons that distinguish a concept in at least this share of its pairs."""
    threshold: float = 0.0
    """τ: on the concept side a neuron fires if its code is above this."""
    tolerance: float = 0.02
    """Tolerance of eq. 6, as in `excise find`."""
    ablated: int = 1
    """Neurons that targeted probe perturbation ablates for each concept."""
    by: str = "i_cdf"
    """Measure to rank by, one of `MEASURES`."""

    def __post_init__(self) -> None:
        if self.by not in MEASURES:
            raise ExciseError(f"cannot rank by {self.by!r}; choose from {', '.join(MEASURES)}")
        if not 0 < self.t <= 1:
            raise ExciseError(f"t is {self.t}; it is a share of the pairs, above 0 and at most 1")
        if self.threshold < 0 or self.ablated < 1:
            raise ExciseError("the threshold must be at least 0, and at least 1 neuron must be ablated")


def concepts_of(text: str, n: int = 100) -> list[Concept]:
    """Return concepts from names separated by commas, or from a file.

    A .txt file has one concept per line: a built-in name, or `weapon: halberd, mace`. A .csv or .jsonl file has pairs,
    with the columns name, concept, deconcept and optionally template.

    Raises:
        ExciseError: A name is unknown, the file cannot be read, or there are no concepts.
    """
    path = Path(text)
    if path.suffix in (".csv", ".jsonl"):
        found = _from_pairs(path)
    else:
        lines = _lines(path) if path.suffix == ".txt" else text.split(",")
        found = [_concept(line, n) for line in map(str.strip, lines) if line]
    if not found:
        raise ExciseError(f"{text!r} names no concept; give names such as gun,knife or a file with them")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise ExciseError(f"cannot read {path} ({error}); give a text file with one concept per line") from error


def _concept(line: str, n: int) -> Concept:
    name, colon, mentions = line.partition(":")
    words = tuple(filter(None, (word.strip() for word in mentions.split(","))))
    return from_templates(name.strip(), words, n) if colon else builtin(name, n)


def _from_pairs(path: Path) -> list[Concept]:
    pairs: dict[str, list[Pair]] = {}
    for where, row in read_rows(path):
        if missing := [key for key in ("name", "concept", "deconcept") if not str(row.get(key) or "").strip()]:
            raise ExciseError(f"{path}, {where}: no {missing[0]}; every row needs name, concept and deconcept")
        name, concept, deconcept = (str(row[key]).strip() for key in ("name", "concept", "deconcept"))
        pairs.setdefault(name, []).append(Pair(concept, deconcept, str(row.get("template") or "")))
    return [Concept(name, (name,), tuple(some)) for name, some in pairs.items()]


@dataclass(frozen=True, eq=False)
class Read:
    """A concept's prompts, with their states at one Site."""

    concept: Concept
    sides: Mapping[str, tuple[Tensor, Tensor]]
    """States `[P, T, d]` and scored `[P, T]`, by "concept", "deconcept" and "controls"."""

    @classmethod
    def of(cls, pipe: Pipeline, site: Site, concept: Concept) -> Read:
        prompts = {
            "concept": [pair.concept for pair in concept.pairs],
            "deconcept": [pair.deconcept for pair in concept.pairs],
            "controls": list(concept.controls),
        }
        if not concept.pairs:
            raise ExciseError(f"concept {concept.name!r} has no pairs; give it pairs")
        return cls(concept, {side: _states(pipe, site, texts) for side, texts in prompts.items() if texts})

    @torch.no_grad()
    def codes(self, sae: TopKSAE, side: str) -> PromptCodes:
        """Return the TopK codes on one side."""
        states, scored = self.sides[side]
        values, indices = sae.encode(states.to(sae.W_enc))
        return PromptCodes(values.cpu(), indices.cpu(), scored, sae.config.m)


def _states(pipe: Pipeline, site: Site, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    batches = features(pipe, site, prompts)
    states = stacked([batch.states[site].float().cpu() for batch in batches])
    return states, stacked([batch.scored.cpu() for batch in batches])


def measure(sae: TopKSAE, reads: Sequence[Read], config: Comparing) -> dict[str, Any]:
    """Measure an SAE on the concepts. Return a row for each under "concepts", and their means."""
    rows, prompts = [], []
    for read in reads:
        row = _of_concept(sae, read, config)
        prompts.append(row.pop("prompts"))
        rows.append(row)
    if len(prompts) > 1:
        for row, found in zip(rows, perturbation(prompts, sae.W_dec.detach().cpu(), config.ablated), strict=True):
            row |= {"tpp": found.value, "tpp_target": found.target, "tpp_others": found.others}
    means = {
        name: statistics.fmean(known) if (known := [row[name] for row in rows if row.get(name) is not None]) else None
        for name in MEASURES
    }
    return {**means, "concepts": rows}


def _of_concept(sae: TopKSAE, read: Read, config: Comparing) -> dict[str, Any]:
    sides = {side: read.codes(sae, side) for side in read.sides}
    concept, deconcept = sides["concept"], sides["deconcept"]
    templates = [pair.template or str(n) for n, pair in enumerate(read.concept.pairs)]
    ranking = identify(concept, deconcept, tolerance=config.tolerance)
    checks = validate(
        concept, deconcept, templates, ranking, controls=sides.get("controls"), top=1, permutations=PERMUTATIONS
    )
    present = torch.cat([torch.ones(len(templates)), torch.zeros(len(templates))]).bool()
    fold = folds(templates, 5, 0).repeat(2)
    z = torch.cat([activations(concept), activations(deconcept)])
    top = checks[0] if checks else None
    return {
        "name": read.concept.name,
        **contrast(concept, deconcept, config.threshold).row(config.t),
        "probing_1": sparse_probing(z, present, fold, 1),
        "probing_5": sparse_probing(z, present, fold, 5),
        "neuron": top and top.index,
        "auroc": top.auroc if top else 0.5,
        "p_value": top and top.p_value,
        "significant": float(top is not None and top.p_value < 0.05),
        "control_share": top and top.control_share,
        "carried": _carried(sae, read, sides, top.index) if top else 0.0,
        "prompts": _pooled(read, sides, present, fold),
    }


def _pooled(read: Read, codes_of: Mapping[str, PromptCodes], present: Tensor, fold: Tensor) -> Prompts:
    """Return states and codes of each prompt, averaged over its scored tokens."""
    x, z = [], []
    for side in ("concept", "deconcept"):
        (states, scored), codes = read.sides[side], codes_of[side]
        weight = scored.float() / scored.sum(1, keepdim=True).clamp(min=1)
        x.append((states * weight[..., None]).sum(1))
        dense = torch.zeros(len(states), codes.m)
        z.append(dense.scatter_add(1, codes.indices.flatten(1), (codes.values * weight[..., None]).flatten(1)))
    return Prompts(torch.cat(x), torch.cat(z), present, fold)


@torch.no_grad()
def _carried(sae: TopKSAE, read: Read, codes_of: Mapping[str, PromptCodes], neuron: int) -> float:
    """Return the share of the concept's change in the last scored state that a neuron carries, s·Δ / Δ·Δ.

    In a causal encoder the last state represents the whole sentence. Our measure, after
    `excise.methods.prompt_codes.carried_share`.
    """
    changes = []
    for side in ("concept", "deconcept"):
        (states, scored), codes = read.sides[side], codes_of[side]
        last = (scored * torch.arange(1, scored.shape[1] + 1)).argmax(1)
        rows = torch.arange(len(states))
        code = (codes.values[rows, last] * (codes.indices[rows, last] == neuron)).sum(1)
        changes.append((states[rows, last].double().mean(0), code.double().mean()))
    delta = changes[0][0] - changes[1][0]
    written = (changes[0][1] - changes[1][1]) * sae.W_dec[neuron].cpu().double()
    return float(written @ delta / (delta @ delta).clamp(min=1e-12))


def compare(
    pipe: Pipeline,
    folders: Iterable[Path],
    concepts: Sequence[Concept],
    config: Comparing | None = None,
    progress: Callable[[int], Any] | None = None,
) -> list[dict[str, Any]]:
    """Return a row for each SAE, best first, which holds a row for each concept.

    FVU and share of dead neurons are taken from the SAE's card, so they refer to its own training features.

    Raises:
        ExciseError: An SAE cannot be read, its card does not name its Site, or a concept has no pairs.
    """
    config = config or Comparing()
    at: dict[Site, list[Read]] = {}
    rows = []
    for folder in folders:
        sae, site = load(folder), sae_site(pipe, folder)
        if site not in at:
            at[site] = [Read.of(pipe, site, concept) for concept in concepts]
        measured = card(folder).get("metrics") or {}
        rows.append(
            {
                "sae": str(folder),
                "site": site.key,
                "m": sae.config.m,
                "k": sae.config.k,
                "fvu": (measured.get("train") or {}).get("fvu"),
                "dead": measured.get("dead_share"),
                **measure(sae, at[site], config),
            }
        )
        if progress is not None:
            progress(1)
    return sorted(rows, key=lambda row: -(row[config.by] if row[config.by] is not None else -1.0))
