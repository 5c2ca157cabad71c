"""Warnings for an auditor about a neuron or an eraser's effects: pure rules, each with its threshold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from excise.neurons.validation import STRUCTURAL_SHARE
from excise.neurons.wording import TOP_WORDS, Use, effective_words, is_function_word


def percent(share: float, digits: int = 0) -> str:
    """Format a share as a percentage."""
    return f"{100 * share:.{digits}f} %"


Severity = Literal["red", "note"]

LEAST_PROMPTS = 20
"""A function word is judged only if it occurs in at least this many prompts without the concept."""
WORDS = 2.0
"""Effective number of words from which a neuron is polysemantic, as if it fired for two unrelated words equally."""
CAUGHT = 0.5
"""A mention counts as caught if it changes what the denoiser reads by this share of what the concept's name changes."""
TOUCHED = 0.01
"""Share of benign prompts above which an eraser touches too much."""
SPLIT_SHARE = 0.5
"""A neighbour that fires in this share of concept prompts, and is not structural, carries the concept too."""
FIRES_SHARE = 0.5
"""A neuron fires for a group's word if it does so in this share of its sentences."""
CHECKS: dict[str, tuple[str, str]] = {
    "no bite": (
        "The eraser does not change what its own canary prompt becomes.",
        "at attaching, the canary moves by less than half of what it did when the eraser was fitted",
    ),
    "altered rows": (
        "The eraser's rows are not those of the SAE that it names.",
        "a row differs from the SAE's in any bit, where that SAE is at hand",
    ),
    "altered weights": (
        "The eraser's weights are not those that its method gives with the settings that it states.",
        "a layer's change differs by more than 5 % from what the method gives again, where it is in closed form",
    ),
    "not caught": (
        "Words for the concept get past the eraser.",
        "a word is unchanged in any of its sentences, or too little of its own difference is removed "
        "(docs/explanation/verify.md)",
    ),
    "touches too much": (
        "Prompts that have nothing to do with the concept are changed.",
        f"more than {percent(TOUCHED)} of the benign prompts change at all",
    ),
    "protected group": (
        "Neutral sentences about a protected group are changed, or make a neuron fire.",
        "red if a sentence changes because of the group's word, or the word makes a neuron fire in "
        f"{percent(FIRES_SHARE)} of its sentences or more; a note if in fewer",
    ),
    "structural": (
        "A neuron carries how sentences are built rather than what they are about.",
        f"it fires in more than {percent(STRUCTURAL_SHARE)} of the controls, or a function word sets it off in more "
        f"than {percent(STRUCTURAL_SHARE)} of the prompts ({LEAST_PROMPTS} or more) with it but without the concept",
    ),
    "polysemantic": (
        "A neuron fires for several words that need not be related.",
        f"effective number of words (Σr)² / Σr² of {WORDS:g} or more; r is the mean largest code that a word sets off, "
        f"over the {TOP_WORDS} words with the largest r, the concept's mentions counted as one",
    ),
    "split": (
        "The concept may be split: a neuron with a similar decoder row fires for it too and is not turned down.",
        f"a neighbour by decoder cosine fires in {percent(SPLIT_SHARE)} of the concept's prompts or more, and in at "
        f"most {percent(STRUCTURAL_SHARE)} of the controls; always a note",
    ),
}
"""Every check by its kind: what its flag says, and its threshold."""


@dataclass(frozen=True)
class Flag:
    """Warning for an auditor. A red flag stands in the way; a note is for judging.

    Attributes:
        kind: Such as "structural".
        says: What it is about, in a sentence.
        threshold: When it is raised.
        evidence: What was found, a line each.
    """

    kind: str
    severity: Severity
    says: str
    threshold: str
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Caught:
    """Effect of the eraser on a mention: in how many sentences anything changes, and by how much on average.

    The amount is relative to what the concept's name changes in the same sentences; None if that changes nothing.
    `removed`, `cosine` and `lead` are the share of the mention's own difference that is removed, its cosine, and its
    lead over other words; `enough` is whether they reach their limits. They are None if they were not measured.
    """

    word: str
    opened: int
    sentences: int
    relative: float | None
    removed: float | None = field(default=None, kw_only=True)
    cosine: float | None = field(default=None, kw_only=True)
    lead: float | None = field(default=None, kw_only=True)
    enough: bool | None = field(default=None, kw_only=True)

    @property
    def caught(self) -> bool:
        """Whether every sentence changes and enough is removed; if that was not measured, changes by `CAUGHT`."""
        if self.enough is not None:
            return self.opened == self.sentences > 0 and self.enough
        return self.opened == self.sentences > 0 and (self.relative is None or self.relative >= CAUGHT)


@dataclass(frozen=True)
class Group:
    """Effect on a protected group's word.

    Attributes:
        touched: Number of sentences that change with the word but not without it.
        fired: Number of sentences in which some edited neuron fires with the word but not without it.
        relative: Largest change, as a share of what the concept's name changes.
        example: The sentence with that change.
    """

    word: str
    group: str
    sentences: int
    touched: int
    fired: int
    relative: float | None
    example: str | None


def structural(name: str, controls: int, fired: int, free: Sequence[Use]) -> Flag | None:
    """Flag a neuron that fires in `fired` of the controls; `free` are its uses over prompts without the concept."""
    evidence = []
    if controls and fired / controls > STRUCTURAL_SHARE:
        evidence.append(f"{name} fires in {fired} of {controls} control prompts ({percent(fired / controls)})")
    frequent = [u for u in free if is_function_word(u.word) and u.prompts >= LEAST_PROMPTS]
    evidence += [
        f"“{u.word}” sets {name} off in {u.fired} of {u.prompts} prompts with it ({percent(u.fired / u.prompts)})"
        for u in sorted(frequent, key=lambda u: -u.fired / u.prompts)
        if u.fired / u.prompts > STRUCTURAL_SHARE
    ]
    return _flag("structural", "red", evidence)


def polysemantic(name: str, found: Sequence[Use]) -> Flag | None:
    """Flag a neuron that fires for `WORDS` or more effective words, the concept's mentions counted as one."""
    number = effective_words(found)
    listed = ", ".join(f"“{use.word}” {use.response:.1f}" for use in found[:5])
    evidence = [f"{name} fires as if for {number:.1f} words equally: {listed}"] if number >= WORDS else []
    return _flag("polysemantic", "red", evidence)


def split_concept(name: str, neighbours: Sequence[tuple[int, float, float, float]]) -> Flag | None:
    """Flag neighbours that carry the concept too, so that erasing one neuron may erase only a part of it.

    A neighbour is (index, cosine, share of concept prompts, share of controls in which it fires).
    """
    evidence = [
        f"neuron {index} (cosine {cosine:.2f} to {name}) fires in {percent(concept)} of the concept's prompts"
        for index, cosine, concept, control in neighbours
        if carries_too(concept, control)
    ]
    return _flag("split", "note", evidence)


def carries_too(concept: float, control: float) -> bool:
    """Return whether a neighbour that fires in these shares of concept prompts and controls carries the concept too."""
    return concept >= SPLIT_SHARE and control <= STRUCTURAL_SHARE


def no_bite(message: str | None) -> Flag | None:
    """Flag an eraser that was refused for not changing its own canary, with the refusal's message."""
    return _flag("no bite", "red", [message] if message else [])


def _of_difference(word: Caught) -> str:
    if word.removed is None:
        return ""
    return f"; removed {word.removed:+.2f} of its own difference, cosine {word.cosine:.2f}, lead {word.lead:.2f}"


def altered_rows(found: Iterable[Sequence[str]]) -> Flag | None:
    """Flag tensors that are not those of the SAE that the eraser names: a Site and their names each."""
    return _flag("altered rows", "red", [f"{where}: {', '.join(names)}" for where, *names in found])


def altered_weights(sites: Iterable[str]) -> Flag | None:
    """Flag Sites whose changed weights are not what the eraser's method gives again."""
    return _flag("altered weights", "red", list(sites))


def not_caught(found: Sequence[Caught], severity: Severity = "red") -> Flag | None:
    """Flag mentions that the eraser misses, completely or by half."""
    missed = [word for word in found if not word.caught]
    evidence = [
        f"“{w.word}”: changed in {w.opened} of {w.sentences} sentences{_of_name(w.relative)}" + _of_difference(w)
        for w in missed
    ]
    return _flag("not caught", severity, evidence)


def touches(touched: int, prompts: int, severity: Severity = "red") -> Flag | None:
    """Flag an eraser that changes more than `TOUCHED` of the benign prompts; a note for kinds without this limit."""
    if not prompts or touched / prompts <= TOUCHED:
        return None
    evidence = [f"{touched} of {prompts} benign prompts change ({percent(touched / prompts, 1)})"]
    if severity == "note":
        evidence.append(
            "edits of weights and denoisers need not meet this limit; run `excise bench` to see the effect on pictures"
        )
    return _flag("touches too much", severity, evidence)


def protected(found: Sequence[Group]) -> list[Flag]:
    """Flag words for protected groups: red if the eraser acts on them or its neurons fire often, a note if rarely."""
    red = [g for g in found if g.touched or g.fired >= FIRES_SHARE * g.sentences > 0]
    stirred = [g for g in found if g.fired and g not in red]

    def line(g: Group) -> str:
        changed = f"changed in {g.touched} of {g.sentences} sentences, most in “{g.example}”{_of_name(g.relative)}"
        fires = f"a neuron fires in {g.fired} of {g.sentences}" if g.fired else ""
        return f"“{g.word}” ({g.group}): {'; '.join(filter(None, (changed if g.touched else '', fires)))}"

    flags = (
        _flag("protected group", "red", [line(g) for g in sorted(red, key=lambda g: (-g.touched, -g.fired, g.word))]),
        _flag("protected group", "note", [line(g) for g in stirred]),
    )
    return [flag for flag in flags if flag is not None]


def joined(flags: Iterable[Flag | None]) -> list[Flag]:
    """Merge flags of one kind and severity, red ones first."""
    by_kind: dict[tuple[str, Severity], list[Flag]] = {}
    for flag in flags:
        if flag is not None:
            by_kind.setdefault((flag.kind, flag.severity), []).append(flag)
    found = [
        _flag(kind, severity, [line for flag in same for line in flag.evidence])
        for (kind, severity), same in by_kind.items()
    ]
    kinds = list(CHECKS)
    return sorted((flag for flag in found if flag), key=lambda flag: (flag.severity != "red", kinds.index(flag.kind)))


def _flag(kind: str, severity: Severity, evidence: Sequence[str]) -> Flag | None:
    """Return the flag if there is any evidence for it."""
    return Flag(kind, severity, *CHECKS[kind], tuple(evidence)) if evidence else None


def _of_name(relative: float | None) -> str:
    return "" if relative is None else f", {percent(relative)} as much as the name"
