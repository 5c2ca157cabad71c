"""Saying which prompts a model does not read to their end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from excise.cli.terminal import note
from excise.pipeline import Pipeline

if TYPE_CHECKING:
    from excise.erasers import Eraser
    from excise.sites.truncation import Cut


def note_cuts(pipe: Pipeline, prompts: Iterable[str]) -> list[Cut]:
    """The prompts that are cut, told of on standard error in one line."""
    from excise.sites.truncation import cuts, described, suppress_cut_warnings

    texts = list(prompts)
    if found := cuts(pipe, texts):
        note(f"warning: {described(found, len(texts))}")
    suppress_cut_warnings(pipe)
    return found


def note_lost(found: Iterable[Cut], erasers: Iterable[Eraser]) -> None:
    """Say of each eraser whether its concept stands in the part of a prompt that is cut off."""
    from excise.concepts.concept import mentioned

    lost = [cut.lost_words for cut in found]
    for eraser in erasers:
        if any(mentioned(text, (eraser.concept, *eraser.mentions)) for text in lost):
            note(f"warning: “{eraser.concept}” stands where the model does not read: it is cut off, not erased")
