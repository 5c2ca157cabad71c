"""The concepts that come with Excise, by name."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from excise.concepts import paper, safety, words
from excise.concepts.concept import Concept
from excise.concepts.templates import from_templates
from excise.errors import NotFound

# Of the paper's tuples, the mentions that fit a template's adjective or phrase. The rest stay mentions.
_SAID = {
    "nudity": ("naked", "nude", "bare", "exposed", "stripped", "topless"),
    "violence": ("bleeding", "blood", "violence"),
}


def names() -> tuple[str, ...]:
    """Every name that `builtin` knows."""
    printed = (f"paper-{name}" for name in paper.TUPLES)
    return (*words.OBJECTS, *words.STYLES, *_SAID, *printed, *safety.names())


def builtin(name: str, n: int = 100, seed: int = 0) -> Concept:
    """A concept by name: an object or style of the bundled model, "nudity" or "violence" (`n` template pairs each),
    "paper-gun" and its like: the five pairs that the paper prints, or "safety-fraud" and its like: sentences for
    language models.

    Plain "gun" and "knife" are template concepts, since the paper's pairs hold synonyms that the benchmark keeps back.
    Raises ExciseError for an unknown name, naming near ones.
    """
    if name in words.OBJECTS:
        return from_templates(name, (name,), n, seed)
    if name in words.STYLES:
        return from_templates(name, (name,), n, seed, kind="style")
    if name in _SAID:
        return replace(from_templates(name, _SAID[name], n, seed, kind="attribute"), mentions=paper.mentions(name))
    if (printed := name.removeprefix("paper-")) != name and printed in paper.TUPLES:
        return paper.table_5(printed)
    if name in safety.names():
        return safety.safety(name, n, seed)
    near = difflib.get_close_matches(name.lower(), names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names()[:5])} and others."
    raise NotFound(
        f"unknown concept '{name}': {hint} `excise concepts` lists them. Another concept needs its words (mentions) "
        "or a file of pairs"
    )


def described(name: str) -> dict[str, Any]:
    """A known concept's name, its kind, what it is for, and its mentions. Raises ExciseError for an unknown name."""
    known = builtin(name, n=5)
    use = "models that draw people"
    if name in (*words.OBJECTS, *words.STYLES):
        use = "the bundled model"
    elif name in safety.names():
        use = "language models"
    elif name.startswith("paper-"):
        use = "the paper's own pairs"
    return {"name": name, "kind": known.kind, "for": use, "mentions": list(known.mentions)}
