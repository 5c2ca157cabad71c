"""Which of many written pairs make a concept's pairs: each by itself, and all of them together.

A pair is a twin where the deconcept side is the concept side with something else, or nothing, in the mention's place.
Another wording on the deconcept side is welcome only where the same concept side has a twin as well: eq. 6 of SNCE asks
that a neuron be silent on every deconcept side, so that the twin keeps the neurons of the sentence's structure out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

from excise.concepts.checks import one_sided, shortened, words_outside
from excise.concepts.concept import Pair, mentioned, without_mentions
from excise.concepts.minors import names_minors

CHANGED = 0.2
"""Share of the words outside the mention that may be other words on a twin's deconcept side; one word always may."""
IN_PLACE = 4
"""Words more than the mention has that may stand in its place."""
LONGEST = 50
"""Words of a prompt: CLIP reads 77 tokens and cuts off what is behind them."""
SIDES = 2
"""Twins that a concept side may have, and as many deconcept sides of another wording."""

EMPTY = "a side is empty"
HOLDS_MENTION = "the deconcept side holds a mention"
NO_MENTION = "the concept side holds no mention"
NAMES_MINOR = "a minor is named"
TOO_LONG = f"a side is longer than {LONGEST} words"
DUPLICATE = "the pair, or its concept side, came before"
OTHER_WORDING = "the wording differs outside the mention"
ONE_SIDED = "a word stands on concept sides only"
SHORTER = "too many deconcept sides are shorter"

_TOKEN = re.compile(r"\w+|,")
_ARTICLES = frozenset(("a", "an", "the"))
_MARK = "\0"


@dataclass(frozen=True)
class Candidate:
    """Both sides as somebody wrote them, and the name of their wording, if it has one."""

    concept: str
    deconcept: str
    template: str = ""


@dataclass(frozen=True)
class Rejected:
    """A candidate that was not taken, with one of the reasons above and its details."""

    concept: str
    deconcept: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Sifted:
    """What became of candidates: each is in one of the three."""

    kept: tuple[Pair, ...]
    spare: tuple[Pair, ...]
    rejected: tuple[Rejected, ...]

    def counts(self) -> dict[str, int]:
        """How many were rejected, by reason, commonest first."""
        return dict(Counter(r.reason for r in self.rejected).most_common())


def sift(candidates: Sequence[Candidate], mentions: tuple[str, ...], n: int, related: tuple[str, ...] = ()) -> Sifted:
    """At most `n` pairs that `excise.concepts.check` finds balanced, those that came first before others.

    `related` are words which say the concept without being its mentions: they may not stand on a deconcept side. A pair
    without a template is named after its wording, so that the same wording is held out together.
    """
    taken: list[tuple[Pair, str]] = []  # with what the deconcept side lacks, "" for a twin
    rejected: list[Rejected] = []
    seen: Counter[tuple[str, bool | str]] = Counter()
    for candidate in candidates:
        pair = Candidate(_clean(candidate.concept), _clean(candidate.deconcept), candidate.template)
        reason, detail = _alone(pair, mentions, related)
        lacks = "" if reason else differs(pair.concept, pair.deconcept, mentions)
        side, both = (_key(pair.concept), bool(lacks)), (_key(pair.concept), _key(pair.deconcept))
        if not reason and (seen[both] or seen[side] >= SIDES):
            reason = DUPLICATE
        if reason:
            rejected.append(Rejected(pair.concept, pair.deconcept, reason, detail))
            continue
        seen.update((side, both))
        name = pair.template or " ".join(without_mentions(pair.concept, mentions, "{m}").lower().split())
        taken.append((Pair(pair.concept, pair.deconcept, name), lacks))
    taken, without = _with_twins(taken)
    kept, spare, dropped = _balanced([pair for pair, _ in taken], {p for p, lacks in taken if lacks}, mentions, n)
    rejected += [Rejected(p.concept, p.deconcept, OTHER_WORDING, lacks) for p, lacks in without]
    return Sifted(tuple(kept), tuple(spare), (*rejected, *dropped))


@lru_cache(maxsize=1 << 14)
def differs(concept: str, deconcept: str, mentions: tuple[str, ...]) -> str:
    """In what the deconcept side is no twin of the concept side, or "" where it is.

    Words and commas are aligned, articles left out. Every one of the concept side's outside its mentions must have a
    counterpart; at most `CHANGED` of these (and one) may be other words; at most as many may be put in besides the
    `IN_PLACE` in a mention's stead.
    """
    mine = _tokens(without_mentions(concept, mentions, f" {_MARK} "))
    outside = sum(token != _MARK for token in mine)
    theirs = _tokens(deconcept)
    changed = added = 0
    for kind, i1, i2, j1, j2 in SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        here = [token for token in mine[i1:i2] if token != _MARK]
        marks, there = i2 - i1 - len(here), j2 - j1
        # One of the words there stands for each mention, the others for what stood beside it.
        others = max(0, there - marks)
        if others < len(here):
            return f"'{' '.join(here)}' is lost" + (f" for '{' '.join(theirs[j1:j2])}'" if there else "")
        changed += len(here)
        added += max(0, others - len(here) - IN_PLACE * marks)
    most = max(1.0, CHANGED * outside)
    if changed > most or added > most:
        return f"{changed} of {outside} words are others, {added} are put in"
    return ""


def faults(pair: Pair, mentions: tuple[str, ...]) -> list[str]:
    """What is wrong with a pair by itself, in words; an empty list where nothing is."""
    reason, detail = _alone(Candidate(pair.concept, pair.deconcept), mentions, ())
    found = [f"{reason} ({detail})" if detail else reason] if reason else []
    lacks = differs(pair.concept, pair.deconcept, mentions)
    return [*found, f"{OTHER_WORDING} ({lacks})"] if lacks else found


def _tokens(text: str) -> list[str]:
    return [t for t in re.findall(rf"{_MARK}|{_TOKEN.pattern}", text.lower()) if t not in _ARTICLES]


def _clean(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _key(text: str) -> str:
    return " ".join(_TOKEN.findall(text.lower()))


def _alone(pair: Candidate, mentions: tuple[str, ...], related: tuple[str, ...]) -> tuple[str, str]:
    """(reason, detail) why a pair cannot be taken, whatever the others are; two empty texts where it can."""
    if not pair.concept or not pair.deconcept:
        return EMPTY, ""
    if found := mentioned(pair.deconcept, (*mentions, *related)):
        return HOLDS_MENTION, f"'{found}'"
    if not mentioned(pair.concept, mentions):
        return NO_MENTION, ""
    if names_minors(pair.concept) or names_minors(pair.deconcept):
        return NAMES_MINOR, ""
    words = max(len(pair.concept.split()), len(pair.deconcept.split()))
    return (TOO_LONG, f"{words} words") if words > LONGEST else ("", "")


def _with_twins(taken: list[tuple[Pair, str]]) -> tuple[list[tuple[Pair, str]], list[tuple[Pair, str]]]:
    """The pairs whose concept side has a twin, none before its twin; and the others."""
    twins: dict[str, int] = {}
    for i, (pair, lacks) in enumerate(taken):
        if not lacks:
            twins.setdefault(_key(pair.concept), i)
    at = [twins.get(_key(pair.concept)) for pair, _ in taken]
    order = sorted((max(i, t), i != t, i) for i, t in enumerate(at) if t is not None)
    return [taken[i] for *_, i in order], [taken[i] for i, t in enumerate(at) if t is None]


def _balanced(
    pairs: list[Pair], worded_otherwise: set[Pair], mentions: tuple[str, ...], n: int
) -> tuple[list[Pair], list[Pair], list[Rejected]]:
    """(kept, spare, dropped): the first `n`, the worst of which go and make room for the next until they balance."""
    rest, kept, dropped = list(pairs), list[Pair](), list[Rejected]()
    while True:
        room = max(0, n - len(kept))
        kept, rest = kept + rest[:room], rest[room:]
        worst = _worst(kept, mentions)
        if worst is None:
            return kept, rest, dropped
        at, reason, detail = worst
        gone = kept.pop(at)
        dropped.append(Rejected(gone.concept, gone.deconcept, reason, detail))
        # What was welcome beside its twin is so no longer.
        twins = {_key(p.concept) for p in (*kept, *rest) if p not in worded_otherwise}
        alone = [p for p in (*kept, *rest) if p in worded_otherwise and _key(p.concept) not in twins]
        dropped += [Rejected(p.concept, p.deconcept, OTHER_WORDING, "its twin was dropped") for p in alone]
        kept, rest = [p for p in kept if p not in alone], [p for p in rest if p not in alone]


def _worst(pairs: list[Pair], mentions: tuple[str, ...]) -> tuple[int, str, str] | None:
    """Which pair makes the set most lopsided, the later of two, and in what; None where the set is balanced."""
    if words := one_sided(pairs, mentions):
        with_it = [words_outside(p.concept, mentions) for p in pairs]
        without = [words_outside(p.deconcept, ()) for p in pairs]
        excess = [sum((w in a) - (w in b) for w in words) for a, b in zip(with_it, without, strict=True)]
        at = max(range(len(pairs)), key=lambda i: (excess[i], i))
        word = next(w for w in words if w in with_it[at] and w not in without[at])
        return at, ONE_SIDED, f"'{word}' is in {words[word][0]} concept sides but {words[word][1]} deconcept sides"
    shorter = shortened(pairs)
    if len(shorter) > len(pairs) / 2:
        return shorter[-1], SHORTER, f"{len(shorter)} of {len(pairs)}"
    return None
