"""Other words in a mention's place: what a prompt would say if it did not say the concept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, product
from typing import Any

from excise.concepts import words
from excise.concepts.concept import Kind, mentioned
from excise.concepts.templates import alike, is_name

FEWEST = 3
"""Fewer words of the mention's own length than this are filled up by words of other lengths."""
TRIED = 4000
"""Phrases of several words that are measured while one of the right length is looked for."""


def others_like(
    mention: str, kind: Kind, length: Callable[[str], Any], most: int, mentions: tuple[str, ...]
) -> list[str]:
    """Return up to `most` words or phrases that can stand where `mention` stands and are not the concept.

    They are spread evenly over the words that fit, so that those of every sort are among them; for a name, other names
    come first.

    Args:
        mention: The word whose place they take.
        kind: What the concept is.
        length: How long the tokenizers find a text. Words as long as the mention come first, since only then does every
            later word of a prompt keep its position.
        most: The largest number of words to return.
        mentions: All words for the concept; none of them is returned.
    """
    wanted = length(mention)
    free = [word for word in _like(mention, kind) if not mentioned(word, (*mentions, mention))]
    fitting = [word for word in free if length(word) == wanted]
    names = [word for word in fitting if is_name(word)] if is_name(mention) else []
    found = _spread(names, most)
    found += _spread([word for word in fitting if word not in names], most - len(found))
    if len(found) < FEWEST:
        joined = (phrase for phrase in islice(_joined(free), TRIED) if length(phrase) == wanted)
        found += islice((phrase for phrase in joined if phrase not in found), FEWEST - len(found))
    if len(found) < FEWEST:
        found += islice((word for word in free if word not in found), FEWEST - len(found))
    return found


def _like(mention: str, kind: Kind) -> tuple[str, ...]:
    """Words that stand in a sentence as the mention does, those most like it first."""
    if kind == "style":
        own = words.NAMED_STYLES if is_name(mention) else (*words.STYLES, *words.MORE_STYLES, *words.TWO_WORD_STYLES)
        return tuple(dict.fromkeys((*own, *words.STYLES)))
    if kind == "attribute":
        return words.ADJECTIVES
    return tuple(dict.fromkeys((*alike(mention), *words.OBJECTS)))


def _spread(fitting: list[str], most: int) -> list[str]:
    """Return `most` of the words at even distances, or all of them if there are fewer."""
    count = max(0, min(most, len(fitting)))
    return [fitting[n * len(fitting) // count] for n in range(count)]


def _joined(free: list[str]) -> Iterator[str]:
    """Phrases of two, three and four of the words."""
    for count in (2, 3, 4):
        yield from (" ".join(some) for some in product(free[:: max(1, len(free) // 8)], repeat=count))
