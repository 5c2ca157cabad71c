"""Concepts that Excise knows by name."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from excise.concepts import paper, safety, words
from excise.concepts.concept import Concept
from excise.concepts.templates import from_templates
from excise.errors import NotFound

# Those mentions in the paper's tuples that fit a template's adjective or phrase. The rest remain mentions too.
_IN_TEMPLATES = {
    "nudity": ("naked", "nude", "bare", "exposed", "stripped", "topless"),
    "violence": ("bleeding", "blood", "violence"),
}


def names() -> tuple[str, ...]:
    """Return every name that `builtin` knows."""
    printed = (f"paper-{name}" for name in paper.TUPLES)
    return (*words.OBJECTS, *words.STYLES, *_IN_TEMPLATES, *printed, *safety.names())


def builtin(name: str, n: int = 100, seed: int = 0) -> Concept:
    """Return a concept by name.

    Objects and styles of the bundled model, "nudity" and "violence" have `n` pairs from templates. "paper-gun" and the
    like have the five pairs that the paper prints. "safety-fraud" and the like have sentences for language models.

    "gun" and "knife" come from templates, as the paper's pairs contain synonyms that the benchmark holds out. Raises
    ExciseError for an unknown name, suggesting similar ones.
    """
    if name in words.OBJECTS:
        return from_templates(name, (name,), n, seed)
    if name in words.STYLES:
        return from_templates(name, (name,), n, seed, kind="style")
    if name in _IN_TEMPLATES:
        return replace(
            from_templates(name, _IN_TEMPLATES[name], n, seed, kind="attribute"), mentions=paper.mentions(name)
        )
    if (printed := name.removeprefix("paper-")) != name and printed in paper.TUPLES:
        return paper.table_5(printed)
    if name in safety.names():
        return safety.safety(name, n, seed)
    near = difflib.get_close_matches(name.lower(), names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names()[:5])} and others."
    raise NotFound(
        f"unknown concept '{name}': {hint} `excise concepts` lists them. Any other concept needs its words (mentions) "
        "or a file of pairs"
    )


def described(name: str) -> dict[str, Any]:
    """Return a known concept's name, kind, models it is for, and mentions. Raises ExciseError for an unknown name."""
    known = builtin(name, n=5)
    use = "models that generate people"
    if name in (*words.OBJECTS, *words.STYLES):
        use = "the bundled model"
    elif name in safety.names():
        use = "language models"
    elif name.startswith("paper-"):
        use = "the paper's own pairs"
    return {"name": name, "kind": known.kind, "for": use, "mentions": list(known.mentions)}
