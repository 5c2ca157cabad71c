"""Selection of a concept's pairs from many candidates, judged one by one and as a set.

A pair is a twin if the deconcept side is the concept side with the mention replaced or removed. Another wording of the
deconcept side is accepted only if the same concept side also has a twin. By SNCE's eq. 6, a neuron must be silent on
every deconcept side, so the twin excludes the neurons of the sentence's structure.
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
"""Largest share of words outside the mention that a twin's deconcept side may replace. One word is always allowed."""
IN_PLACE = 4
"""Largest number of words by which the replacement may be longer than the mention."""
LONGEST = 50
"""Most words in a prompt: CLIP truncates after 77 tokens."""
SIDES = 2
"""Most twins per concept side, and most deconcept sides of another wording."""

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
    """Both sides as written, and the name of their wording, if any."""

    concept: str
    deconcept: str
    template: str = ""


@dataclass(frozen=True)
class Rejected:
    """Candidate that was rejected, with one of the reasons above and its detail."""

    concept: str
    deconcept: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Sifted:
    """Result of a selection. Each candidate is kept, spare or rejected."""

    kept: tuple[Pair, ...]
    spare: tuple[Pair, ...]
    rejected: tuple[Rejected, ...]

    def counts(self) -> dict[str, int]:
        """Count the rejected candidates by reason, commonest first."""
        return dict(Counter(r.reason for r in self.rejected).most_common())


def sift(candidates: Sequence[Candidate], mentions: tuple[str, ...], n: int, related: tuple[str, ...] = ()) -> Sifted:
    """Select at most `n` pairs that `excise.concepts.check` finds balanced. Earlier candidates take precedence.

    `related` are words that express the concept without being mentions; they may not be on a deconcept side. A pair
    without a template is named after its wording, so that pairs of the same wording are held out together.
    """
    taken: list[tuple[Pair, str]] = []  # with how the deconcept side differs; "" for a twin
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
    """Describe how the deconcept side fails to be a twin of the concept side; "" if it is one.

    Words and commas are aligned, without articles. Each of the concept side's outside its mentions must have a
    counterpart. At most a share `CHANGED` of these (but always one) may be other words, and at most as many may be
    added beyond the `IN_PLACE` for each mention.
    """
    mine = _tokens(without_mentions(concept, mentions, f" {_MARK} "))
    outside = sum(token != _MARK for token in mine)
    theirs = _tokens(deconcept)
    changed = added = 0
    for kind, i1, i2, j1, j2 in SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        here = [token for token in mine[i1:i2] if token != _MARK]
        marks, put_in = i2 - i1 - len(here), j2 - j1
        # One of these words replaces each mention, the others replace its neighbours.
        others = max(0, put_in - marks)
        if others < len(here):
            return f"'{' '.join(here)}' is lost" + (f" for '{' '.join(theirs[j1:j2])}'" if put_in else "")
        changed += len(here)
        added += max(0, others - len(here) - IN_PLACE * marks)
    most = max(1.0, CHANGED * outside)
    if changed > most or added > most:
        return f"{changed} of {outside} words differ, {added} are added"
    return ""


def faults(pair: Pair, mentions: tuple[str, ...]) -> list[str]:
    """Describe what is wrong with a single pair; an empty list if nothing is."""
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
    """Return the reason and detail why a pair must be rejected regardless of the others; two empty texts if none."""
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
    """Split the pairs into those whose concept side has a twin, none before its twin, and the others."""
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
    """Return kept, spare and dropped pairs. Of the first `n`, the worst is replaced by the next until they balance."""
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
        # Another wording is accepted only with its twin.
        twins = {_key(p.concept) for p in (*kept, *rest) if p not in worded_otherwise}
        alone = [p for p in (*kept, *rest) if p in worded_otherwise and _key(p.concept) not in twins]
        dropped += [Rejected(p.concept, p.deconcept, OTHER_WORDING, "its twin was dropped") for p in alone]
        kept, rest = [p for p in kept if p not in alone], [p for p in rest if p not in alone]


def _worst(pairs: list[Pair], mentions: tuple[str, ...]) -> tuple[int, str, str] | None:
    """Return which pair unbalances the set most (the later of two) and how; None if the set is balanced."""
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
