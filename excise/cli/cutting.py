"""Warnings about prompts that are too long for the text encoder and get truncated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from excise.cli.terminal import note
from excise.pipeline import Pipeline

if TYPE_CHECKING:
    from excise.erasers import Eraser
    from excise.sites.truncation import Cut


def note_cuts(pipe: Pipeline, prompts: Iterable[str]) -> list[Cut]:
    """Return the prompts that the text encoder truncates, and warn about them in one line on standard error."""
    from excise.sites.truncation import cuts, described, suppress_cut_warnings

    texts = list(prompts)
    if found := cuts(pipe, texts):
        note(f"warning: {described(found, len(texts))}")
    suppress_cut_warnings(pipe)
    return found


def note_lost(found: Iterable[Cut], erasers: Iterable[Eraser]) -> None:
    """Warn about each eraser whose concept is mentioned in a truncated part of a prompt."""
    from excise.concepts.concept import mentioned

    lost = [cut.lost_words for cut in found]
    for eraser in erasers:
        if any(mentioned(text, (eraser.concept, *eraser.mentions)) for text in lost):
            note(f"warning: “{eraser.concept}” is in a truncated part of a prompt: the model never reads it there")
