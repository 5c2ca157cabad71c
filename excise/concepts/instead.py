"""Pairs of prompts that differ in the word in a concept's place: the concept's own, and another one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from excise.concepts.concept import Concept, Pair, mentioned
from excise.concepts.minors import names_minors
from excise.concepts.templates import with_article
from excise.errors import ExciseError, InvalidSetting

NOTHING = "nothing"
"""Stands for what is left without the concept: the deconcept sides of its own pairs."""


def pairs_instead(concept: Concept, word: str) -> tuple[Pair, ...]:
    """Return the concept's pairs with `word` in its place as the deconcept side, or as they are for `NOTHING`.

    Each concept prompt is used once. Raises InvalidSetting if the word is one of the concept's own or names a minor,
    and ExciseError if no pair contains a mention.
    """
    if word == NOTHING:
        return concept.pairs
    if own := mentioned(word, concept.mentions):
        raise InvalidSetting(f"replace_with is {word!r}, but {own!r} is to be erased; choose another word")
    if names_minors(word):
        raise InvalidSetting(f"replace_with is {word!r}, which names a minor; choose another word")
    texts = dict.fromkeys(pair.concept for pair in concept.pairs if mentioned(pair.concept, concept.mentions))
    if not texts:
        raise ExciseError(f"no pair mentions {concept.name!r}, so {word!r} cannot take its place; give other pairs")
    templates = {pair.concept: pair.template for pair in concept.pairs}
    return tuple(Pair(text, with_instead(text, concept.mentions, word), templates[text]) for text in texts)


def with_instead(text: str, mentions: Iterable[str], word: str) -> str:
    """Return the text with `word` in the place of every mention. An article before a mention is made to fit."""
    words = "|".join(r"\s+".join(map(re.escape, m.split())) for m in sorted(mentions, key=len, reverse=True))

    def other(found: re.Match[str]) -> str:
        if not found["article"]:
            return word
        said = with_article(word)
        return said[0].upper() + said[1:] if found["article"][0] == "A" else said

    return re.sub(rf"(?<!\w)(?:(?P<article>an?)\s+)?(?:{words})(?:e?s)?(?!\w)", other, text, flags=re.IGNORECASE)
