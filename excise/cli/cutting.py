"""Saying which prompts a model does not read to their end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from excise.cli.terminal import note

if TYPE_CHECKING:
    from excise.sites.truncation import Cut


def note_cuts(pipe: Any, prompts: Iterable[str]) -> list[Cut]:
    """The prompts that are cut, told of on standard error in one line."""
    from excise.sites.truncation import cuts, described, told_of_cuts

    texts = list(prompts)
    if found := cuts(pipe, texts):
        note(f"warning: {described(found, len(texts))}")
    told_of_cuts(pipe)
    return found
