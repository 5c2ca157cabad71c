"""Identification of a concept's neurons (SNCE, step 3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from excise.errors import ExciseError, InvalidSetting
from excise.neurons.scores import SCORES, PromptCodes, Scored
from excise.notebook import counted, line, listed, table


@dataclass(frozen=True)
class Neuron:
    """One neuron in a ranking: frequency is f^c_i (eq. 4), deconcept_score is s^d_i (eq. 5)."""

    index: int
    score: float
    frequency: int
    deconcept_score: float


@dataclass(frozen=True, repr=False)
class Ranking:
    """Differential neurons N_C by falling score (R_C of eq. 7), and how they were found.

    `near` are neurons with a higher score on the concept side that eq. 6 still rejects, sorted by that margin: a
    tolerance may admit them.
    """

    entries: tuple[Neuron, ...]
    near: tuple[Neuron, ...]
    score: str
    tolerance: float

    def __repr__(self) -> str:
        first = [f"{entry.index} ({entry.score:.3g})" for entry in self.entries]
        found = f": {listed(first)}" if first else ""
        return line(
            self, counted(len(first), "neuron") + found, f"score={self.score!r}", f"tolerance={self.tolerance:g}"
        )

    def _repr_html_(self) -> str:
        """Return a table of the first ten neurons, for notebooks."""
        rows = [(e.index, f"{e.score:.4g}", e.frequency, f"{e.deconcept_score:.4g}") for e in self.entries[:10]]
        columns = ("neuron", "score", "frequency", "score without the concept")
        shown = f", the first {len(rows)}" if len(self.entries) > len(rows) else ""
        return table(f"{counted(len(self.entries), 'neuron')} by {self.score}{shown}", columns, rows)

    def top(self, k: int = 1) -> tuple[int, ...]:
        """Return the indices of the first k neurons. Raises ExciseError if there are fewer."""
        if k < 1:
            raise InvalidSetting(f"cannot take the top {k} neurons; k is 1 or more")
        if len(self.entries) < k:
            best = f"; neuron {self.near[0].index} comes closest" if self.near else ""
            raise ExciseError(
                f"only {len(self.entries)} neurons fire on the concept side alone, fewer than {k}{best}: "
                "take a smaller k, raise the tolerance, or try another site"
            )
        return tuple(e.index for e in self.entries[:k])

    @property
    def dominance(self) -> float:
        """First score over second: high if one neuron carries the concept; inf without a second, nan without any."""
        if not self.entries:
            return float("nan")
        return self.entries[0].score / self.entries[1].score if len(self.entries) > 1 else float("inf")


def identify(
    concept_codes: PromptCodes,
    deconcept_codes: PromptCodes,
    *,
    tolerance: float = 0.0,
    k: int | None = None,
    score: str = "snce",
) -> Ranking:
    """Rank the neurons that fire on the concept side and not on the deconcept side (eqs. 6-7).

    Args:
        concept_codes: Codes of the concept prompts.
        deconcept_codes: Codes of the deconcept prompts.
        tolerance: Largest deconcept score, as a share of the neuron's concept score; 0 is eq. 6.
        k: How many neurons to return; by default all.
        score: One of `SCORES`.

    Returns:
        The ranking. Equal scores are ordered by index.

    Raises:
        ExciseError: for a negative tolerance, an unknown score, or sides of different widths.
    """
    if tolerance < 0:
        raise InvalidSetting(f"the tolerance is {tolerance}; it is a share, 0 or more")
    if score not in SCORES:
        raise InvalidSetting(f"unknown score '{score}'; known are {', '.join(SCORES)}")
    if concept_codes.m != deconcept_codes.m:
        raise ExciseError(
            f"the two sides come from SAEs of {concept_codes.m} and {deconcept_codes.m} neurons; use one SAE"
        )
    found = SCORES[score](concept_codes, deconcept_codes, tolerance)
    margin = found.concept.s - found.deconcept.s
    near = _entries(found, _order(margin, ~found.kept & (margin > 0))[:10], found.concept.s)
    return Ranking(_entries(found, _order(found.rank_by, found.kept)[:k], found.rank_by), near, score, tolerance)


def _order(by: Tensor, kept: Tensor) -> list[int]:
    order = torch.argsort(by, descending=True, stable=True)
    return [int(i) for i in order[kept[order]]]


def _entries(found: Scored, order: Iterable[int], by: Tensor) -> tuple[Neuron, ...]:
    return tuple(Neuron(i, float(by[i]), int(found.concept.f[i]), float(found.deconcept.s[i])) for i in order)
