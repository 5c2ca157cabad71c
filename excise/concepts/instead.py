"""Pairs of prompts that differ in the word in a concept's place: the concept's own, and another one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from excise.concepts.concept import Concept, Pair, mentioned
from excise.concepts.minors import names_minors
from excise.concepts.templates import with_article
from excise.concepts.words import EMPTY
from excise.errors import ExciseError, InvalidSetting

NOTHING = "nothing"
"""Stands for what is left without the concept: the deconcept sides of those of its pairs that only leave it out."""
LEAST = 5
"""Least number of such pairs."""


def pairs_instead(concept: Concept, word: str) -> tuple[Pair, ...]:
    """Return pairs of the concept's prompts with the same prompts with `word`, or `NOTHING`, in its place.

    For a word, each concept prompt that contains a mention is used once. For `NOTHING`, these are the concept's own
    pairs without those that have another thing in its place: the mean of many things is drawn as a part of each.

    Raises InvalidSetting if the word is one of the concept's own or names a minor, and ExciseError if no pair contains
    a mention, or for `NOTHING` fewer than `LEAST` leave the concept out.
    """
    if word == NOTHING:
        left_out = (pair for pair in concept.pairs if leaves_out(pair))
        found = tuple(pair for pair in left_out if not mentioned(pair.deconcept, concept.mentions))
        if len(found) < LEAST:
            raise ExciseError(
                f"{len(found)} pairs leave {concept.name!r} out, such as 'a cat' for 'a gun and a cat', but {LEAST} "
                "are needed; give more, or a word to replace it with"
            )
        return found
    if own := mentioned(word, concept.mentions):
        raise InvalidSetting(f"replace_with is {word!r}, but {own!r} is to be erased; choose another word")
    if names_minors(word):
        raise InvalidSetting(f"replace_with is {word!r}, which names a minor; choose another word")
    texts = dict.fromkeys(pair.concept for pair in concept.pairs if mentioned(pair.concept, concept.mentions))
    if not texts:
        raise ExciseError(f"no pair mentions {concept.name!r}, so {word!r} cannot take its place; give other pairs")
    templates = {pair.concept: pair.template for pair in concept.pairs}
    return tuple(Pair(text, with_instead(text, concept.mentions, word), templates[text]) for text in texts)


def leaves_out(pair: Pair) -> bool:
    """Whether a pair's deconcept side names nothing that its concept side does not, or says that there is nothing."""
    with_it, without = (_words(text) for text in (pair.concept, pair.deconcept))
    return without <= with_it or bool(_EMPTY.search(pair.deconcept))


def _words(text: str) -> set[str]:
    """Return a text's words without articles."""
    return set(re.findall(r"\w+", text.lower())) - {"a", "an", "the"}


_EMPTY = re.compile(rf"(?<!\w)(?:{'|'.join(EMPTY)})(?!\w)", re.IGNORECASE)


_ARTICLE = re.compile(r"(?:an?|the|no|some)\s")


def with_instead(text: str, mentions: Iterable[str], word: str) -> str:
    """Return the text with `word` instead of every mention. An article before a mention is made to fit."""
    words = "|".join(r"\s+".join(map(re.escape, m.split())) for m in sorted(mentions, key=len, reverse=True))

    def other(found: re.Match[str]) -> str:
        if not found["article"]:
            return word
        said = word if _ARTICLE.match(word) else with_article(word)
        return said[0].upper() + said[1:] if found["article"][0] == "A" else said

    return re.sub(rf"(?<!\w)(?:(?P<article>an?)\s+)?(?:{words})(?:e?s)?(?!\w)", other, text, flags=re.IGNORECASE)
