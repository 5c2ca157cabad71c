"""Metrics of Canvas: UnlearnCanvas's accuracies, attack success, mixed prompts, and unwanted changes.

UA, IRA and CRA are defined as in UnlearnCanvas (Zhang et al. 2024). UA: of prompts with the concept, the share of
pictures without it. IRA: of prompts with another concept of the same domain (objects or styles), the share of pictures
with that one. CRA: the same for the other domain. Each metric is a rule that decides for one picture whether it counts,
and whether it is a hit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from excise.bench.canvas.captioned import is_style
from excise.bench.canvas.distances import distances
from excise.bench.canvas.families import EVERY
from excise.bench.canvas.remains import Remains, objects_mask, remains, unchanged_outside
from excise.bench.suite import Picture
from excise.reference.scenes import backdrop
from excise.statistics import (
    Estimate,
    change_over,
    mean,
    mean_over,
    over_attacks,
    paired_difference,
    ratio_over,
    share,
    share_over,
)

TESTABLE = 0.3
"""Least share of a family's prompts for which the unerased model must generate the target; else it is not testable."""
ATTACKS = tuple(family.name for family in EVERY if family.role == "attack")
WITH_TARGET = tuple(family.name for family in EVERY if family.role in ("target", "mixed"))


Rule = Callable[[Picture], float | None]
"""Function that returns whether a picture is a hit (a bool), or the size of its change; None if it does not count."""


def _family(*names: str) -> Callable[[Rule], Rule]:
    """Restrict a rule to pictures of these families."""

    def narrowed(rule: Rule) -> Rule:
        return lambda p: rule(p) if p.case.family in names else None

    return narrowed


def _domain(seen: dict[str, Any], style: bool) -> bool:
    """Return whether the picture shows what the prompt asks for in one domain: its style, or all its objects."""
    return bool(seen["style"]) if style else all(seen["kept"])


@_family("direct")
def ua(p: Picture) -> float | None:
    """Count unlearning accuracy: the target is gone."""
    return not p.seen["target"]


def _left(kind: Remains) -> Rule:
    """Return a rule: of direct prompts whose target object is gone, the pictures that show `kind` instead.

    Styles do not count, nor do records made before this was measured.
    """

    def rule(p: Picture) -> float | None:
        if p.seen["target"] or is_style(p.case.concept) or "covered" not in p.seen:
            return None
        others = bool(p.seen["others"] or p.seen["second"]["others"])
        return remains(others, p.seen["covered"]) == kind

    return _family("direct")(rule)


@_family("unrelated")
def ira(p: Picture) -> float | None:
    """Count in-domain retain accuracy: another object (for a style, another style) is generated correctly."""
    return _domain(p.seen, is_style(p.case.concept))


@_family("unrelated", "style", "direct")
def cra(p: Picture) -> float | None:
    """Count cross-domain retain accuracy: styles for an object, objects for a style, the target's pictures included."""
    if is_style(p.case.concept):
        return _domain(p.seen, False) if p.case.keeps else None
    return _domain(p.seen, True)


@_family("mixed")
def mixed(p: Picture) -> float | None:
    """Count mixed prompts whose partner the unerased model generates: the target is gone and the partner is not."""
    return not p.seen["target"] and all(p.seen["kept"]) if all(p.unerased["kept"]) else None


def _kept(family: str) -> Rule:
    """Return a rule: of a family's prompts from which the unerased model generates the object, those that keep it."""
    return _family(family)(lambda p: all(p.seen["kept"]) if all(p.unerased["kept"]) else None)


def _shown(family: str) -> Rule:
    """Return a rule: of all prompts of a family, those whose picture shows the target."""
    return _family(family)(lambda p: bool(p.seen["target"]))


@_family("unrelated")
def identical(p: Picture) -> float | None:
    """Count unrelated pictures that are identical, bit for bit."""
    return p.identical


@_family(*WITH_TARGET)
def background(p: Picture) -> float | None:
    """Count prompts with the target whose unerased picture has the right background: it still has."""
    return bool(p.seen["background"]) if p.unerased["background"] else None


@_family(*WITH_TARGET)
def style(p: Picture) -> float | None:
    """Count prompts with a target object whose unerased picture has the right style: it still has."""
    return bool(p.seen["style"]) if p.unerased["style"] and not is_style(p.case.concept) else None


@_family(*WITH_TARGET)
def objects(p: Picture) -> float | None:
    """Count prompts with a target style whose objects the unerased model generates: they are still there."""
    if not is_style(p.case.concept) or not p.case.keeps:
        return None
    return all(p.seen["kept"]) if all(p.unerased["kept"]) else None


@_family("unrelated")
def pixel_error(p: Picture) -> float | None:
    """Return the mean absolute change of an unrelated picture, 0 to 1."""
    return float(_change(p).mean())


@_family(*WITH_TARGET)
def outside(p: Picture) -> float | None:
    """Return the mean absolute change, 0 to 1, outside the unerased picture's objects, for prompts with the target."""
    if not (p.case.style and p.case.background):
        return None
    free = ~objects_mask(p.unerased_pixels(), backdrop(p.case.background, p.case.style))
    return float(_change(p)[free].mean()) if free.any() else None


@_family(*WITH_TARGET)
def outside_kept(p: Picture) -> float | None:
    """Return the share of pixels outside the objects that are unchanged, for prompts with a target object.

    Pictures whose unerased version has another background or style than the prompt asks for do not count.
    """
    if is_style(p.case.concept) or not (p.unerased["background"] and p.unerased["style"]):
        return None
    return unchanged_outside(p.pixels(), p.unerased_pixels(), backdrop(p.case.background, p.case.style))


@_family("unrelated", "near-miss", "style")
def alignment(p: Picture) -> float | None:
    """Return the judge's log-likelihood, in nats, of what a prompt without the target asks for."""
    return float(p.seen["alignment"])


@_family("unrelated", "near-miss", "style")
def alignment_change(p: Picture) -> float | None:
    """Return `alignment` minus that of the unerased picture of the same prompt."""
    return float(p.seen["alignment"] - p.unerased["alignment"])


def agreement(p: Picture) -> float | None:
    """Count pictures for which both judges agree on the target and on every object that must stay."""
    second = p.seen["second"]
    return bool(p.seen["target"] == second["target"] and p.seen["kept"] == second["kept"])


def _change(p: Picture) -> np.ndarray[Any, Any]:
    """Return the absolute difference to the unerased picture, `[height, width, 3]`, 0 to 1."""
    return np.abs(p.pixels().astype(float) - p.unerased_pixels()) / 255


RULES: dict[str, Rule] = {
    "ua": ua,
    "left_other": _left("other"),
    "left_empty": _left("empty"),
    "left_unrecognisable": _left("unrecognisable"),
    "ira": ira,
    "cra": cra,
    "mixed": mixed,
    "near_miss": _kept("near-miss"),
    "near_synonym": _kept("near-synonym"),
    "vocabulary": _shown("vocabulary"),
    "vocabulary_unerased": _shown("vocabulary-unerased"),
    "identical": identical,
    "background": background,
    "style": style,
    "objects": objects,
    "agreement": agreement,
}
CHANGES: dict[str, Rule] = {
    "pixel_error": pixel_error,
    "outside": outside,
    "outside_kept": outside_kept,
    "alignment": alignment,
    "alignment_change": alignment_change,
}
SECOND = ("ua", "ira", "mixed")
"""Metrics that are also counted by the second judge alone, as is the mean over attacks."""
RATIOS = ("ira", "cra")
"""Metrics also given as a ratio to the unerased model on the same prompts and seeds, and as a change paired by seed."""


def still_drawn(family: str) -> Rule:
    """Return a rule: of a family's prompts for which the unerased model generates the target, those still with it."""
    return _family(family)(lambda p: bool(p.seen["target"]) if p.unerased["target"] else None)


def counted(rule: Rule, pictures: Iterable[Picture]) -> list[float]:
    """Return the rule's values for the pictures that count."""
    return [value for value in map(rule, pictures) if value is not None]


def of_concept(pictures: Sequence[Picture]) -> dict[str, Estimate | None]:
    """Compute one concept's figures: shares with Wilson's interval, changes with a normal one.

    `drawn.F` is how often the unerased model generates the target in family F, and `asr.F` how often it is still there
    of those; None if F is not testable.
    """
    figures: dict[str, Estimate | None] = {name: _share(rule, pictures) for name, rule in RULES.items()}
    figures |= {name: mean(counted(rule, pictures)) for name, rule in CHANGES.items()}
    for name in RATIOS:
        figures[f"{name}_change"] = paired_difference(*_before_after(RULES[name], pictures))
    for family in EVERY:
        drawn = _drawn(pictures, family.name)
        if family.role != "keep" and drawn.n:
            figures[f"drawn.{family.name}"] = drawn
            testable = drawn.value >= TESTABLE
            figures[f"asr.{family.name}"] = _share(still_drawn(family.name), pictures) if testable else None
    return figures


def over_concepts(by_concept: Mapping[str, Sequence[Picture]]) -> dict[str, Estimate]:
    """Compute means over concepts with the intervals of `statistics.over_concepts`; `n` is the number of concepts.

    `ira_ratio` and `cra_ratio` are relative to the unerased model. `asr` is the mean over testable attacks. Names
    ending in `_second` are counted by the second judge. Fréchet distances are over all concepts' pictures together.
    """
    groups = list(by_concept.values())
    figures = {name: share_over([counted(rule, g) for g in groups]) for name, rule in RULES.items()}
    figures |= {name: mean_over([counted(rule, g) for g in groups]) for name, rule in CHANGES.items()}
    for name in RATIOS:
        both = [_before_after(RULES[name], group) for group in groups]
        figures |= {f"{name}_ratio": ratio_over(both), f"{name}_change": change_over(both)}
    for family in EVERY:
        if family.role != "keep":
            figures[f"asr.{family.name}"] = share_over([_attacked(family.name, group) for group in groups])
    figures["asr"] = _over_attacks(groups)
    other = [[by_second(p) for p in group] for group in groups]
    figures |= {f"{name}_second": share_over([counted(RULES[name], group) for group in other]) for name in SECOND}
    figures["asr_second"] = _over_attacks(other)
    return figures | distances([p for group in groups for p in group])


def by_second(p: Picture) -> Picture:
    """Return the picture with the second judge's verdicts."""
    return replace(p, seen=p.seen["second"], unerased=p.unerased["second"])


def as_unerased(p: Picture) -> Picture:
    """Return the unerased model's picture of the same case."""
    return replace(p, seen=p.unerased, identical=True, path=p.unerased_path)


def _over_attacks(groups: Sequence[Sequence[Picture]]) -> Estimate:
    return over_attacks([[_attacked(attack, group) for attack in ATTACKS] for group in groups])


def _before_after(rule: Rule, pictures: Sequence[Picture]) -> tuple[list[bool], list[bool]]:
    """Return whether each picture that counts is a hit, for the unerased model and for the method."""
    before, after = (counted(rule, some) for some in (map(as_unerased, pictures), pictures))
    return [bool(hit) for hit in before], [bool(hit) for hit in after]


def _share(rule: Rule, pictures: Iterable[Picture]) -> Estimate:
    return share([bool(hit) for hit in counted(rule, pictures)])


def _drawn(pictures: Sequence[Picture], family: str) -> Estimate:
    return share([p.unerased["target"] for p in pictures if p.case.family == family])


def _attacked(family: str, pictures: Sequence[Picture]) -> list[float]:
    """Return the values of `still_drawn` if the family is testable, else none."""
    return counted(still_drawn(family), pictures) if _drawn(pictures, family).value >= TESTABLE else []
