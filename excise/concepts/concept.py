"""What is to be erased: a name, the words for it, prompts with and without it, prompts that must stay as they are."""

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
    """One concept pair P = (p^c, p^d) (SNCE, step 1).

    `template` names the wording, so that held-out folds can be split by it; "" makes the pair a fold unit of its own.
    Raises ExciseError where a side is empty.
    """

    concept: str
    deconcept: str
    template: str = ""

    def __post_init__(self) -> None:
        for side, text in (("concept", self.concept), ("deconcept", self.deconcept)):
            if not text.strip():
                raise ExciseError(f"a pair's {side} prompt is empty ({self}); give both sides a text")


@dataclass(frozen=True, repr=False)
class Concept:
    """A concept C: `mentions` is the paper's concept tuple V_C, `controls` are prompts that erasing must not change.

    Raises ExciseError where the name or a mention is empty, or where there are no mentions.
    """

    name: str
    mentions: tuple[str, ...]
    pairs: tuple[Pair, ...] = ()
    controls: tuple[str, ...] = ()
    kind: Kind = "object"

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ExciseError("the concept has no name; name what is to be erased, for instance 'gun'")
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
    """The first of the mentions found in the text as whole words (a plural -s counts), as it stands there, or None."""
    found = _pattern(tuple(mentions)).search(text)
    return found.group() if found else None


def check_apart(texts: Iterable[str], concept: Concept) -> None:
    """Raises ExciseError where one of the texts, which have to stay as they are, says what is to be erased."""
    for text in texts:
        if mentioned(text, concept.mentions):
            raise ExciseError(f"{text!r} is to be kept and is {concept.name!r}, which is to be erased; leave it out")


def all_mentioned(text: str, mentions: Iterable[str]) -> list[str]:
    """Every mention found in the text as whole words, as it stands there."""
    found: list[str] = _pattern(tuple(mentions)).findall(text)
    return found


def without_mentions(text: str, mentions: Iterable[str], instead: str = " ") -> str:
    """The text with every mention blanked out, or with another text in its place."""
    return _pattern(tuple(mentions)).sub(lambda _: instead, text)
