"""Measurement of an eraser: prompt families, the judge's verdicts before and after, and the five figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from excise.bench.canvas.remains import covered, remains
from excise.bench.pictures import Pictures
from excise.pipeline import Pipeline
from excise.sites.truncation import label
from excise.statistics import Estimate, paired_difference, share

FamilyName = Literal["direct", "synonym", "mixed", "unrelated"]
TITLES: dict[FamilyName, str] = {
    "direct": "Direct: prompts that name the concept",
    "synonym": "Synonym: words that the eraser was not fitted on",
    "mixed": "Mixed: prompts with the concept and another object",
    "unrelated": "Unrelated: prompts whose pictures must not change",
}
LEFT = ("other", "empty", "unrecognisable")
"""What a picture without the target shows instead."""
Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Family:
    """Prompts of one kind with their seeds. `others` names each prompt's object besides the concept, or ""."""

    name: FamilyName
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    others: tuple[str, ...]
    lost: Mapping[str, str] = field(default_factory=dict)
    """The end of each truncated prompt, by prompt."""

    def label(self, n: int) -> str:
        """Return the label of the n-th prompt's picture, which marks a truncated end."""
        return label(self.prompts[n], self.lost.get(self.prompts[n], ""))


@dataclass(frozen=True)
class Seen:
    """The judge's verdicts on one family's pictures, all arrays `[n]`. Style and background are indices."""

    target: Flags
    other: Flags
    style: np.ndarray[Any, np.dtype[np.int64]]
    background: np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Outcome:
    """One family's pictures `[n, height, width, 3]` and verdicts, before erasing and after."""

    family: Family
    before: Pictures
    after: Pictures
    seen_before: Seen
    seen_after: Seen
    left: tuple[str, ...] = ()
    """What each picture shows afterwards besides the requested objects (`excise.bench.canvas.remains`)."""

    @property
    def identical(self) -> Flags:
        """Whether each picture is unchanged, bit for bit, `[n]`."""
        return np.asarray((self.before == self.after).all(axis=(1, 2, 3)))


def families(concept: str, n: int) -> tuple[Family, ...]:
    """Return the four families for an object of the bundled model: n prompts each, with seeds 0 to n - 1."""
    from excise.reference import prompts

    seeds = tuple(range(n))
    mixed, unrelated = prompts.mixed(concept, n), prompts.unrelated(concept, n)
    none = ("",) * n
    return (
        Family("direct", tuple(prompts.direct(concept, n)), seeds, none),
        Family("synonym", tuple(prompts.synonym(concept, n)), seeds, none),
        Family("mixed", tuple(p for p, _ in mixed), seeds, tuple(o for _, o in mixed)),
        Family("unrelated", tuple(p for p, _ in unrelated), seeds, tuple(o for _, o in unrelated)),
    )


def generate(
    pipe: Pipeline, groups: Sequence[Family], steps: int = 20, progress: Callable[[float], Any] | None = None
) -> list[Pictures]:
    """Generate every family's pictures with the bundled model, in one pass so that batches are full."""
    from excise import reference

    prompts = [p for g in groups for p in g.prompts]
    seeds = [s for g in groups for s in g.seeds]
    pictures = reference.generate(pipe, prompts, seeds, steps=steps, progress=progress)
    return [np.asarray(part) for part in np.split(pictures, np.cumsum([len(g.prompts) for g in groups])[:-1])]


def judge(
    concept: str, groups: Sequence[Family], before: Sequence[Pictures], after: Sequence[Pictures]
) -> list[Outcome]:
    """Return the families with the bundled judge's verdicts on their pictures before and after."""
    from excise import reference
    from excise.reference.world import OBJECTS

    first, second = reference.judge(), reference.judge("second_classifier")
    outcomes = []
    for g, b, a in zip(groups, before, after, strict=True):
        verdicts = first(a)
        recognised = verdicts.objects | second(a).objects
        left = []
        for n, other in enumerate(g.others):
            strangers = [name for k, name in enumerate(OBJECTS) if recognised[n, k] and name not in (concept, other)]
            left.append(remains(bool(strangers), covered(a[n])))
        seen_before, seen_after = (seen(side, concept, g, OBJECTS) for side in (first(b), verdicts))
        outcomes.append(Outcome(g, b, a, seen_before, seen_after, tuple(left)))
    return outcomes


def seen(verdicts: Any, concept: str, family: Family, objects: Sequence[str]) -> Seen:
    """Reduce the bundled judge's verdicts (`objects [n, 40]`, `style [n]`, `background [n]`) to one family's."""
    rows = np.arange(len(family.prompts))
    columns = np.array([objects.index(o) if o else 0 for o in family.others])
    asked = np.array([bool(o) for o in family.others])
    return Seen(
        target=np.asarray(verdicts.objects[:, objects.index(concept)]),
        other=np.asarray(verdicts.objects[rows, columns] & asked),
        style=np.asarray(verdicts.style),
        background=np.asarray(verdicts.background),
    )


def figures(outcomes: Sequence[Outcome]) -> dict[str, Estimate]:
    """Return the five figures of `result.json`.

    Figures of the target and of the partner count only prompts for which the unerased model generates it.
    `others_delta` is the change in the share of unrelated prompts whose object is recognised, paired by seed.
    """
    by_name = {o.family.name: o for o in outcomes}
    unrelated, mixed = by_name["unrelated"], by_name["mixed"]
    return {
        "target_direct": _still(by_name["direct"].seen_before.target, by_name["direct"].seen_after.target),
        "target_synonym": _still(by_name["synonym"].seen_before.target, by_name["synonym"].seen_after.target),
        "partner_kept": _still(mixed.seen_before.other, mixed.seen_after.other),
        "others_delta": paired_difference(unrelated.seen_before.other.tolist(), unrelated.seen_after.other.tolist()),
        "unrelated_identical": share(unrelated.identical.tolist()),
    }


def further_figures(outcomes: Sequence[Outcome]) -> dict[str, Estimate]:
    """Return further figures: rates before erasing, the target in mixed prompts, background and style kept."""
    by_name = {o.family.name: o for o in outcomes}
    direct, mixed = by_name["direct"], by_name["mixed"]
    gone = [n for n in np.flatnonzero(direct.seen_before.target & ~direct.seen_after.target) if direct.left]
    return {
        **{f"left_{kind}": share([direct.left[n] == kind for n in gone]) for kind in LEFT},
        "target_direct_before": share(direct.seen_before.target.tolist()),
        "target_synonym_before": share(by_name["synonym"].seen_before.target.tolist()),
        "target_mixed": _still(mixed.seen_before.target, mixed.seen_after.target),
        "partner_before": share(mixed.seen_before.other.tolist()),
        "others_before": share(by_name["unrelated"].seen_before.other.tolist()),
        "background_kept": share((direct.seen_before.background == direct.seen_after.background).tolist()),
        "style_kept": share((direct.seen_before.style == direct.seen_after.style).tolist()),
    }


def _still(before: Flags, after: Flags) -> Estimate:
    """Return the share of those present before that are still present after."""
    return share(after[before].tolist())
