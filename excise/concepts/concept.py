"""Concept to erase: a name, its words, prompts with and without it, and prompts that must not change."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from excise.errors import ExciseError
from excise.notebook import counted, line, listed, quoted

Kind = Literal["object", "style", "attribute"]


@dataclass(frozen=True)
class Pair:
    """Concept pair P = (p^c, p^d) (SNCE, step 1).

    `template` names the wording, by which held-out folds are split; "" makes the pair its own unit. Raises ExciseError
    if a side is empty.
    """

    concept: str
    deconcept: str
    template: str = ""

    def __post_init__(self) -> None:
        for side, text in (("concept", self.concept), ("deconcept", self.deconcept)):
            if not text.strip():
                raise ExciseError(f"a pair's {side} prompt is empty ({self}); give both sides text")


@dataclass(frozen=True, repr=False)
class Concept:
    """Concept C: `mentions` is the paper's concept tuple V_C, `controls` are prompts that erasing must not change.

    `controls` have the wordings of the pairs. `benign` are prompts as the model's users write them: SNCE
    calibrates on every second one and measures on the others.

    Raises ExciseError if the name or a mention is empty, or if there are no mentions.
    """

    name: str
    mentions: tuple[str, ...]
    pairs: tuple[Pair, ...] = ()
    controls: tuple[str, ...] = ()
    kind: Kind = "object"
    benign: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ExciseError("the concept has no name; give it one, such as 'gun'")
        if not self.mentions or not all(m.strip() for m in self.mentions):
            raise ExciseError(f"concept '{self.name}' has an empty mention or none; give at least one word for it")

    def __repr__(self) -> str:
        sizes = (counted(len(self.pairs), "pair"), counted(len(self.controls), "control"))
        mentions = f"mentions: {listed([quoted(mention) for mention in self.mentions])}"
        return line(self, quoted(self.name), mentions, *sizes, f"kind={self.kind!r}")


@lru_cache(maxsize=256)
def _pattern(mentions: tuple[str, ...]) -> re.Pattern[str]:
    words = "|".join(r"\s+".join(map(re.escape, m.split())) for m in sorted(mentions, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{words})(?:e?s)?(?!\w)", re.IGNORECASE)


def mentioned(text: str, mentions: Iterable[str]) -> str | None:
    """Return the first mention in the text, as spelled there, or None. Whole words match, with or without plural -s."""
    found = _pattern(tuple(mentions)).search(text)
    return found.group() if found else None


def check_apart(texts: Iterable[str], concept: Concept) -> None:
    """Raise ExciseError if one of the texts, which must not change, mentions the concept."""
    for text in texts:
        if mentioned(text, concept.mentions):
            raise ExciseError(f"{text!r} is to be kept and is {concept.name!r}, which is to be erased; leave it out")


def all_mentioned(text: str, mentions: Iterable[str]) -> list[str]:
    """Return every mention in the text as whole words, as spelled there."""
    found: list[str] = _pattern(tuple(mentions)).findall(text)
    return found


def without_mentions(text: str, mentions: Iterable[str], instead: str = " ") -> str:
    """Return the text with every mention replaced by `instead`."""
    return _pattern(tuple(mentions)).sub(lambda _: instead, text)
