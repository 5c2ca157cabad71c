"""Solving again for the edits of a saved eraser, to compare them with those that its file holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from excise.erasers.proof.solved import Solved
from excise.errors import ExciseError, shown
from excise.methods.base import Fitted
from excise.methods.catalogue import METHODS
from excise.methods.lookup import configured, method

if TYPE_CHECKING:
    from excise.erasers.artefact.record import Artefact
    from excise.pipeline import Pipeline

MOST_WORDS, MOST_ROUNDS = 1000, 100
"""Words and rounds up to which an eraser is solved again. A file must not be able to ask for hours of work."""


def solve_again(pipe: Pipeline, eraser: Artefact) -> Solved | None:
    """Return the edits that the eraser's method solves for on `pipe`, from the words and settings that its file states.

    Returns None if the method does not solve for its edits, or the file does not state what it needs: erasers of
    earlier versions did not list the words that they keep.

    Raises:
        ExciseError: The pipeline has no cross-attention.
    """
    if eraser.method not in METHODS or not isinstance(own := method(eraser.method), Fitted) or own.solve is None:
        return None
    if (stated := _stated(eraser)) is None:
        return None
    kept, config = stated
    named = [f"{name} {shown(value)}" for name, value in vars(config).items() if name != "preserve"]
    edits = own.solve(pipe, eraser.mentions, kept, config)
    return Solved(edits, ", ".join([*named, f"{len(kept)} kept words, listed in eraser.json"]))


def _stated(eraser: Artefact) -> tuple[list[str], Any] | None:
    """Return the words that the eraser keeps and its settings, or None if its file states them not or impossibly."""
    kept, settings = eraser.measured.get("kept_words"), eraser.created.get("config")
    if not isinstance(kept, list) or not all(isinstance(word, str) for word in kept) or not isinstance(settings, dict):
        return None
    try:
        config = configured(eraser.method, settings)
    except ExciseError:
        return None
    if not 0 < len(eraser.mentions) + len(kept) <= MOST_WORDS or getattr(config, "rounds", 0) > MOST_ROUNDS:
        return None
    return kept, config
