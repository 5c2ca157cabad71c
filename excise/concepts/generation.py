"""Questions that ask a language model for a concept's pairs.

No offensive text ships with Excise. For the paper's four concepts, a recipe has the words (SNCE's own tuples), related
words, and the manner in which to write pairs. The user's model writes the pairs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from excise.concepts import safety, words
from excise.concepts.concept import Concept, Kind, Pair, mentioned
from excise.concepts.library import builtin
from excise.concepts.minors import names_minors
from excise.concepts.sifting import differs
from excise.concepts.templates import from_templates
from excise.errors import ExciseError

_TASK = (
    "You write prompts for a text-to-image model in pairs, for research on taking one concept out of that model. "
    "The concept prompt of a pair holds one of the concept's words. The deconcept prompt is the same prompt with "
    "something else in that word's place: every other word stays, in the same order. Everyone in a prompt is an adult."
)
_FORM = 'Answer with one JSON object a line and nothing else: {"concept": "...", "deconcept": "..."}'

_WHAT: dict[Kind, str] = {"object": "a thing", "style": "a style of drawing", "attribute": "what somebody is like"}
STRUCTURES: dict[Kind, tuple[str, ...]] = {
    "object": (
        "the thing alone, in a few words",
        "the thing first, something else beside it",  # words: ok
        "something else first, the thing beside it",  # words: ok
        "the thing in the middle of a list of three",
        "the thing at a place, with light or weather",
        "a long prompt of fifteen to thirty words, the thing anywhere in it",
    ),
    "style": (
        "the style as an adjective of one thing",
        'the style in a phrase behind the thing, as in "in ... style"',
        "the style first, two things behind it",
        "the style at the end of a prompt with a place",
        "a long prompt of fifteen to thirty words, the style anywhere in it",
    ),
    "attribute": (
        "one person or statue, in a few words",
        "one person first, somebody or something else behind",
        "somebody or something else first, the person behind",
        "a person at a place, with light or weather",
        "a painting, photograph or sculpture of a person, with its technique",
        "a long prompt of fifteen to thirty words",
    ),
}
"""Wordings to ask for, by the concept's kind."""


@dataclass(frozen=True)
class Recipe:
    """Specification of a concept's pairs, used to ask for them and to judge them."""

    name: str
    mentions: tuple[str, ...]
    kind: Kind = "object"
    requested: tuple[str, ...] = ()
    """Mentions to ask for, if not all. The others are accepted too."""
    related: tuple[str, ...] = ()
    """Words that express the concept without being mentions. They may not be on a deconcept side."""
    manner: str = ""
    """Addition to the system prompt for this concept."""

    @property
    def instruction(self) -> str:
        """System prompt of every question."""
        return " ".join(filter(None, (_TASK, self.manner, _FORM)))

    @property
    def words(self) -> tuple[str, ...]:
        """Mentions to ask for."""
        return self.requested or self.mentions


_RELATED = {
    "nudity": ("undressed", "unclothed", "nudity", "nudist", "nudists", "shirtless"),
    "violence": ("violent", "bloody", "blood-stained", "bleed", "wound", "wounded", "injury", "injured", "fighting"),
    "gun": ("pistol", "rifle", "sniper rifle", "shotgun", "revolver", "handgun", "firearm", "weapon"),
    "knife": ("knives", "pocket knife", "penknife", "jackknife", "weapon"),
}
_MANNER = {
    "nudity": "Write as a museum's catalogue would: paintings, sculpture, life drawing, anatomy. Nothing sexual, no "
    "real person.",
    "violence": "Write as a film's synopsis or a first-aid manual would: plain, without cruelty or detail, no "
    "real person.",
}


def recipe(name: str, mentions: Sequence[str] | None = None, kind: str = "object") -> Recipe:
    """Return the recipe of a known concept (`excise.concepts.names`), or of any name with its mentions.

    Raises ExciseError for an unknown name or kind, an empty mention, a mention of a minor, or a topic of
    `excise.concepts.safety`, whose sentences are not prompts for pictures.
    """
    if kind not in get_args(Kind):
        raise ExciseError(f"unknown kind {kind!r}; choose one of {', '.join(get_args(Kind))}")
    known = name.removeprefix("paper-")
    requested: tuple[str, ...] = ()
    if mentions is not None:
        concept = Concept(name, tuple(mentions), kind=next(k for k in get_args(Kind) if k == kind))
    elif name in safety.names():
        raise ExciseError(f"'{name}' is for language models and has its own sentences; use `excise pairs make {name}`")
    else:
        concept = builtin(name, 100)
        pairs = (*concept.pairs, *builtin(known, 100).pairs)
        used = tuple(m for m in concept.mentions if any(mentioned(p.concept, (m,)) for p in pairs))
        requested = used if used != concept.mentions else ()
    if minor := next((m for m in concept.mentions if names_minors(m)), None):
        raise ExciseError(f"'{minor}' names a minor; Excise writes no prompts about minors; choose other mentions")
    related = tuple(word for word in _RELATED.get(known, ()) if not mentioned(word, concept.mentions))
    return Recipe(concept.name, concept.mentions, concept.kind, requested, related, _MANNER.get(known, ""))


def question(
    asked: Recipe, n: int, number: int = 0, seed: int = 0, structures: Sequence[str] | None = None
) -> tuple[str, str]:
    """Return the system prompt and the question for `n` pairs.

    Args:
        number: Index of the question. Each suggests other places, things and styles, and shows other examples, so that
            the answers vary.
        structures: Wordings to ask for. Default: those of the concept's kind.

    The same arguments give the same text on every machine.
    """
    rng = random.Random(f"{seed} {number} {asked.kind} {' | '.join(asked.mentions)}")
    forbidden = (*asked.mentions, *asked.related)

    def some(options: Sequence[str], count: int) -> str:
        fitting = [o for o in options if not mentioned(o, forbidden)]
        return "; ".join(rng.sample(fitting, min(count, len(fitting))))

    who = words.PEOPLE if asked.kind == "attribute" else (*words.OBJECTS, *words.VOWEL_NOUNS)
    examples = _examples(asked, number)
    shown = [json.dumps({"concept": p.concept, "deconcept": p.deconcept}, ensure_ascii=False) for p in examples]
    lines = [
        f"The concept is {asked.name.removeprefix('paper-')}: {_WHAT[asked.kind]}.",
        f"Its words, each to be used about equally often: {', '.join(asked.words)}.",
        f"Never on a deconcept side, in any form: {', '.join(dict.fromkeys(forbidden))}.",
        'What takes the place of a word is another each time, and fits the article before it: "a" stays "a", "an" '
        'stays "an". Never leave the word out together with an "and", a comma or anything else.',
        "Use these wordings about equally often:",
        *(f"- {structure}" for structure in structures or STRUCTURES[asked.kind]),
        f"Draw on these places: {some(words.PLACES, 5)}; on these subjects: {some(who, 8)}; "
        f"on these styles: {some(words.STYLES, 3)}; and on others of your own.",
        # At the end, where small models pay most attention.
        *(["For example:", *shown, f"Write {n} more pairs like these, all different."] if shown else []),
        *([] if shown else [f"Write {n} pairs, all different."]),
    ]
    return asked.instruction, "\n".join(lines)


def _examples(asked: Recipe, number: int, n: int = 3) -> list[Pair]:
    """Return twins from templates, or none for mentions that templates cannot use."""
    try:
        pairs = from_templates(asked.name, asked.words, 4 * n, seed=number, kind=asked.kind, controls=0).pairs
    except ExciseError:
        return []
    good = [p for p in pairs if not differs(p.concept, p.deconcept, asked.mentions)]
    return [p for p in good if not mentioned(p.deconcept, (*asked.mentions, *asked.related))][:n]
