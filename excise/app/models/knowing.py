"""What the bundled model draws, so that nobody erases what was never there."""

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
"""How like another a name is at least that may be that one mistyped: "gnu" is 0.67 like "gun", "submarine" 0.63 like
"syringe"."""


def not_drawn(concept: Concept) -> list[str]:
    """The mentions that name no object or style of the bundled model's, nor a common word for one."""
    known = (*OBJECTS, *STYLES, *(word for words in SYNONYMS.values() for word in words))
    return [mention for mention in concept.mentions if not mentioned(mention, known)]


def refuse_not_drawn(concept: Concept) -> list[str]:
    """The mentions that the bundled model does not draw, where it draws some.

    Raises WeakEraserError where it draws none of them.
    """
    unknown = not_drawn(concept)
    if len(unknown) == len(concept.mentions):
        near = get_close_matches(unknown[0].lower(), (*OBJECTS, *STYLES), n=1, cutoff=TYPING_ERROR)
        raise WeakEraserError(
            f"this model does not draw {', '.join(unknown)}: nothing to erase; "
            f"{f'did you mean {near[0]}? It' if near else 'it'} draws {len(OBJECTS)} objects in {len(STYLES)} styles "
            "(`excise concepts`); another model is named with --model, other words for it with --mentions"
        )
    return unknown


def refuse_unknown(name: str) -> None:
    """Raises WeakEraserError where a name is neither a known concept's nor that of anything the bundled model draws."""
    if name not in names():
        refuse_not_drawn(Concept(name, (name,)))


def is_snce(name: str) -> bool:
    """Whether a method is SNCE, or has it as a part: its verdict has a limit on the pairs, no other method's has."""
    return "snce" in named(name).split(AND)


def refuse_few_pairs(concept: Concept) -> None:
    """Raises WeakEraserError where the concept has too few pairs for SNCE's eraser of it to be relied on."""
    if (number := len(concept.pairs)) < LEAST_PAIRS:
        raise WeakEraserError(
            f"only {number} pair{'s' * (number != 1)} of prompts for {concept.name!r}; {LEAST_PAIRS} are needed, "
            "and 100 are good (--accept-weak tries it all the same)"
        )


def parts(text: str) -> list[str] | None:
    """The concepts in "gun,knife"; None where that is one concept, whose name may hold commas.

    It is several where every part between the commas is the name of a known concept.
    """
    found = [part.strip() for part in text.split(",") if part.strip()]
    return found if "," in text and found and set(found) <= set(names()) else None


def explain_unsplit(text: str) -> str | None:
    """Why a text with commas is one concept though some of its parts are known ones; None where none is."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in found if part not in names()]
    if "," not in text or not unknown or len(unknown) == len(found):
        return None
    return (
        f"{text!r} is several concepts only where each is a known one, and {unknown[0]!r} is none (`excise concepts`); "
        "erase it by itself, with its words (--mentions) or a file of pairs (--pairs)"
    )
