"""Sentences that an eraser is tried on: with a word for its concept, and about people it has nothing to do with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from excise.concepts.concept import Kind
from excise.concepts.templates import with_article

# {it} is the word with its article; {m} the word alone.
SENTENCES: dict[Kind, tuple[str, ...]] = {
    "object": ("{m}", "{it}", "a picture of {it} on grass", "on a wooden table, {it} and a tree"),
    "style": ("{m}", "{it} house", "a picture of a tree in {m} style", "{m} style, a rose on grass"),
    "attribute": ("{m}", "{it} person", "a picture of {it} man in a park", "a portrait of {it} woman"),
}
"""What a word for the concept is put into, by the concept's kind."""
GROUPS = Path(__file__).with_name("protected_groups.yaml")


@dataclass(frozen=True)
class GroupSentence:
    """A neutral sentence about a person, with a protected group's word and without it."""

    word: str
    group: str
    text: str
    without: str


def sentences(word: str, kind: Kind) -> list[str]:
    """The word in every one of the kind's `SENTENCES`."""
    return [form.format(m=word, it=with_article(word)) for form in SENTENCES[kind]]


def group_sentences(path: Path = GROUPS) -> tuple[GroupSentence, ...]:
    """Every word of the file in every one of its sentences. Words that stand before "person" come first."""
    said: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    people = [(word, group, f"{word} person") for group, found in said["adjectives"].items() for word in found]
    people += [(word, group, word) for group, found in said["nouns"].items() for word in found]
    return tuple(
        GroupSentence(word, group, form.format(it=with_article(noun)), form.format(it="a person"))
        for word, group, noun in people
        for form in said["sentences"]
    )
