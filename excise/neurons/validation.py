"""Validation of a concept's neurons: held-out AUROC, a permutation null, controls, and the tokens they fire on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from excise.errors import ExciseError, InvalidSetting
from excise.neurons.identification import Ranking, identify
from excise.neurons.scores import PromptCodes

STRUCTURAL_SHARE = 0.05
"""Share of controls above which a neuron counts as structural: erasing it would change too many other images."""


@dataclass(frozen=True)
class Validation:
    """Validation of one neuron.

    Attributes:
        auroc: Concept against deconcept prompts of held-out templates, over the folds in which the other folds alone
            rank the neuron among the first; None if that never happened.
        selected: Share of folds in which it did.
        p_value: Probability, if concept and deconcept sides did not differ, that the *best of all m neurons* separates
            them as well as this one does (over all folds).
        auroc_controls: Concept prompts against controls; None without controls.
        control_share: Share of controls on which it fires at all, or, if an eraser's threshold is known, on which that
            eraser would act; None without controls.
        structural: Whether `control_share` is above `STRUCTURAL_SHARE`.
    """

    index: int
    auroc: float | None
    selected: float
    p_value: float
    auroc_controls: float | None
    control_share: float | None

    @property
    def structural(self) -> bool:
        return self.control_share is not None and self.control_share > STRUCTURAL_SHARE


@dataclass(frozen=True)
class TokenUse:
    """One neuron's codes at a token: how often it fires, and its largest and mean code there."""

    token: str
    count: int
    maximum: float
    mean: float


def activations(codes: PromptCodes) -> Tensor:
    """Return [P,m] largest code of each neuron over a prompt's scored tokens (0 if it is silent), float32."""
    values = torch.where(codes.scored[..., None], codes.values.float(), 0.0)
    out = torch.zeros(len(values), codes.m, device=values.device)
    return out.scatter_reduce(1, codes.indices.flatten(1).long(), values.flatten(1), "amax")


def auroc(positive: Tensor, negative: Tensor) -> Tensor:
    """Return AUROC [m] of positive [A,m] against negative [B,m].

    It is the share of (positive, negative) combinations in the right order, ties counting half (Mann-Whitney U/AB).
    Raises ExciseError if a side is empty.
    """
    if not len(positive) or not len(negative):
        raise ExciseError("an AUROC needs prompts on both sides; give concept and deconcept (or control) prompts")
    return _u(_ranks(torch.cat([positive, negative]))[: len(positive)]) / (len(positive) * len(negative))


def folds(templates: Sequence[str], n: int = 5, seed: int = 0) -> Tensor:
    """Return [P] fold numbers such that pairs of one template share a fold; a pair with template "" stands alone.

    Folds are filled from the largest template down, so that their sizes are similar; with fewer templates than n there
    are fewer folds. Raises ExciseError if all pairs have one template.
    """
    keys = [t or f"\0{i}" for i, t in enumerate(templates)]
    sizes = {key: keys.count(key) for key in keys}
    if len(sizes) < 2:
        raise ExciseError("all pairs have one template, so none can be held out; use pairs of several templates")
    generator = torch.Generator().manual_seed(seed)
    names = [list(sizes)[int(i)] for i in torch.randperm(len(sizes), generator=generator)]
    filled, fold_of = [0] * min(n, len(sizes)), dict[str, int]()
    for name in sorted(names, key=lambda key: -sizes[key]):
        fold_of[name] = filled.index(min(filled))
        filled[fold_of[name]] += sizes[name]
    return torch.tensor([fold_of[key] for key in keys])


def validate(
    concept: PromptCodes,
    deconcept: PromptCodes,
    templates: Sequence[str],
    ranking: Ranking,
    *,
    controls: PromptCodes | None = None,
    groups: Sequence[object] | None = None,
    top: int = 10,
    n_folds: int = 5,
    permutations: int = 1000,
    seed: int = 0,
) -> tuple[Validation, ...]:
    """Validate the first `top` neurons of a ranking of P pairs.

    Args:
        concept: Codes of the concept prompts.
        deconcept: Codes of the deconcept prompts.
        templates: [P], each pair's template; they divide the folds.
        ranking: Ranking of the same pairs.
        controls: Codes of control prompts.
        groups: [P], names of groups of pairs that are not independent, such as those that share a concept prompt (pass
            the concept prompts). The permutation null exchanges the sides of a group together.
        top: How many neurons to validate.
        n_folds: Number of folds.
        permutations: Number of permutations of the null distribution.
        seed: Seed of folds and permutations.

    Returns:
        A Validation for each neuron.

    Raises:
        ExciseError: if the numbers of prompts, templates and groups differ.
    """
    names = list(range(len(templates))) if groups is None else list(groups)
    if not len(concept.values) == len(deconcept.values) == len(templates) == len(names):
        raise ExciseError("concept, deconcept, templates and groups differ in number; give one of each for every pair")
    if top < 1 or permutations < 1 or n_folds < 2:
        raise InvalidSetting("validation needs top and permutations of 1 or more, and 2 folds or more")
    fold, c, d = folds(templates, n_folds, seed), activations(concept).cpu(), activations(deconcept).cpu()
    observed, null = permutation_null(c, d, fold, names, permutations, seed)
    held_out = _held_out(concept, deconcept, c, d, fold, ranking, top)
    rest = None if controls is None else activations(controls).cpu()
    against = None if rest is None else auroc(c, rest)
    return tuple(
        Validation(
            e.index,
            *held_out(e.index),
            p_value=(1 + int((null >= observed[e.index] - 1e-12).sum())) / (1 + len(null)),
            auroc_controls=None if against is None else float(against[e.index]),
            control_share=None if rest is None else float((rest[:, e.index] > 0).double().mean()),
        )
        for e in ranking.entries[:top]
    )


def permutation_null(
    concept: Tensor, deconcept: Tensor, fold: Tensor, groups: Sequence[object], n: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the AUROC [m] of activations `concept` and `deconcept` [P,m], within folds only, and its null [n].

    Null: the sides of each pair are exchanged at random, those of one group together, and the largest AUROC of all m
    neurons is recorded (max statistic, Westfall and Young 1993: the p value allows for the search through m neurons).
    """
    order = {g: i for i, g in enumerate(dict.fromkeys(groups))}
    group = torch.tensor([order[g] for g in groups])
    rank_c, rank_d = torch.zeros_like(concept, dtype=torch.float64), torch.zeros_like(deconcept, dtype=torch.float64)
    couples, least = 0, 0.0
    for f in sorted(set(fold.tolist())):
        rows = (fold == f).nonzero()[:, 0]
        rank = _ranks(torch.cat([concept[rows], deconcept[rows]]))
        rank_c[rows], rank_d[rows] = rank[: len(rows)], rank[len(rows) :]
        couples, least = couples + len(rows) ** 2, least + len(rows) * (len(rows) + 1) / 2
    generator = torch.Generator().manual_seed(seed)
    swaps = torch.rand(n, len(order), generator=generator)[:, group] < 0.5
    difference = rank_d - rank_c
    null = [(rank_c.sum(0) + part.double() @ difference).amax(1) for part in torch.split(swaps, 64)]
    return (rank_c.sum(0) - least) / couples, (torch.cat(null) - least) / couples


class _HeldOut:
    """Held-out AUROC and share of folds in which it was selected, for one neuron at a time."""

    def __init__(self, n_folds: int) -> None:
        self.n_folds = n_folds
        self.won: dict[int, float] = {}
        self.couples: dict[int, int] = {}
        self.times: dict[int, int] = {}

    def __call__(self, index: int) -> tuple[float | None, float]:
        if index not in self.times:
            return None, 0.0
        return self.won[index] / self.couples[index], self.times[index] / self.n_folds


def _held_out(
    concept: PromptCodes, deconcept: PromptCodes, c: Tensor, d: Tensor, fold: Tensor, ranking: Ranking, top: int
) -> _HeldOut:
    numbers = sorted(set(fold.tolist()))
    out = _HeldOut(len(numbers))
    for f in numbers:
        test = fold == f
        train = (~test).to(concept.values.device)
        chosen = identify(
            concept.rows(train), deconcept.rows(train), tolerance=ranking.tolerance, k=top, score=ranking.score
        )
        area, couples = auroc(c[test], d[test]), int(test.sum()) ** 2
        for i in (e.index for e in chosen.entries):
            out.won[i] = out.won.get(i, 0.0) + float(area[i]) * couples
            out.couples[i] = out.couples.get(i, 0) + couples
            out.times[i] = out.times.get(i, 0) + 1
    return out


def top_tokens(codes: PromptCodes, tokens: Sequence[Sequence[str]], neuron: int, n: int = 10) -> tuple[TokenUse, ...]:
    """Return the n tokens at which a neuron's codes are largest, scored positions only; tokens [P][T] are the words.

    In a causal encoder a neuron also fires at what follows its word: read the list as "at or after".
    """
    at = torch.where(codes.indices == neuron, codes.values, 0).amax(-1) * codes.scored
    seen: dict[str, list[float]] = {}
    for p, t in at.nonzero().tolist():
        seen.setdefault(tokens[p][t], []).append(float(at[p, t]))
    uses = [TokenUse(word, len(v), max(v), math.fsum(v) / len(v)) for word, v in seen.items()]
    return tuple(sorted(uses, key=lambda use: (-use.maximum, use.token))[:n])


def _ranks(x: Tensor) -> Tensor:
    """Return [N,m] ranks from 1 within each column, ties at their mean rank, float64."""
    ordered = x.sort(dim=0).values.T.contiguous()
    columns = x.T.contiguous()
    below = torch.searchsorted(ordered, columns, right=False)
    up_to = torch.searchsorted(ordered, columns, right=True)
    return ((below + up_to + 1).double() / 2).T


def _u(ranks: Tensor) -> Tensor:
    return ranks.sum(0) - len(ranks) * (len(ranks) + 1) / 2
