"""Checks that the bundled model knows a concept, so that there is something to erase."""

from __future__ import annotations

from difflib import get_close_matches

from excise.concepts import Concept, names
from excise.concepts.checks import LEAST_PAIRS
from excise.concepts.concept import mentioned
from excise.errors import WeakEraserError
from excise.methods.base import AND
from excise.methods.lookup import named
from excise.reference.world import OBJECTS, STYLES, SYNONYMS

TYPING_ERROR = 0.65
"""Least similarity of a name to the known one that it may be a typing error of. "gnu" and "gun" have 0.67, "submarine"
and "syringe" 0.63."""


def not_known(concept: Concept) -> list[str]:
    """Return the mentions that do not name an object or style of the bundled model, or a synonym of one."""
    known = (*OBJECTS, *STYLES, *(word for words in SYNONYMS.values() for word in words))
    return [mention for mention in concept.mentions if not mentioned(mention, known)]


def refuse_not_known(concept: Concept) -> list[str]:
    """Return the mentions that the bundled model does not know.

    Raises:
        WeakEraserError: It knows none of them.
    """
    unknown = not_known(concept)
    if len(unknown) == len(concept.mentions):
        near = get_close_matches(unknown[0].lower(), (*OBJECTS, *STYLES), n=1, cutoff=TYPING_ERROR)
        raise WeakEraserError(
            f"this model does not know {', '.join(unknown)}: nothing to erase; "
            f"{f'did you mean {near[0]}? It' if near else 'it'} knows {len(OBJECTS)} objects in {len(STYLES)} styles "
            "(`excise concepts`); name another model with --model, or other words for the concept with --mentions"
        )
    return unknown


def refuse_unknown(name: str) -> None:
    """Raise WeakEraserError if a name is neither a built-in concept nor known to the bundled model."""
    if name not in names():
        refuse_not_known(Concept(name, (name,)))


def is_snce(name: str) -> bool:
    """Return whether a method is SNCE or joined with it. Only SNCE's verdict requires a number of pairs."""
    return "snce" in named(name).split(AND)


def refuse_few_pairs(concept: Concept) -> None:
    """Raise WeakEraserError if the concept has too few pairs for a reliable SNCE eraser."""
    if (number := len(concept.pairs)) < LEAST_PAIRS:
        raise WeakEraserError(
            f"only {number} pair{'s' * (number != 1)} of prompts for {concept.name!r}; give at least {LEAST_PAIRS}, "
            "better 100 (--accept-weak tries it anyway)"
        )


def parts(text: str) -> list[str] | None:
    """Return the concepts in "gun,knife", or None if the text is one concept, whose name may hold commas.

    It is several concepts if every part between the commas is the name of a built-in concept.
    """
    found = [part.strip() for part in text.split(",") if part.strip()]
    return found if "," in text and found and set(found) <= set(names()) else None


def explain_unsplit(text: str) -> str | None:
    """Return why a text with commas is one concept although some of its parts are built in, or None otherwise."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in found if part not in names()]
    if "," not in text or not unknown or len(unknown) == len(found):
        return None
    return (
        f"{text!r} is one concept, since {unknown[0]!r} is not a built-in one (`excise concepts`); to erase several, "
        "erase that one separately, with its words (--mentions) or a file of pairs (--pairs)"
    )
