"""Sentences for testing an eraser: with a word for its concept, and about groups of people unrelated to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from excise.concepts.concept import Kind
from excise.concepts.templates import with_article
from excise.files import read_text

# {it} is the word with its article; {m} the word alone.
SENTENCES: dict[Kind, tuple[str, ...]] = {
    "object": ("{m}", "{it}", "a picture of {it} on grass", "on a wooden table, {it} and a tree"),
    "style": ("{m}", "{it} house", "a picture of a tree in {m} style", "{m} style, a rose on grass"),
    "attribute": ("{m}", "{it} person", "a picture of {it} man in a park", "a portrait of {it} woman"),
}
"""Sentences for a word of the concept, by the concept's kind."""
GROUPS = Path(__file__).with_name("protected_groups.yaml")


@dataclass(frozen=True)
class GroupSentence:
    """Neutral sentence about a person, with a protected group's word and without it."""

    word: str
    group: str
    text: str
    without: str


def sentences(word: str, kind: Kind) -> list[str]:
    """Return the word in each of the kind's `SENTENCES`."""
    return [form.format(m=word, it=with_article(word)) for form in SENTENCES[kind]]


def group_sentences(path: Path = GROUPS) -> tuple[GroupSentence, ...]:
    """Return every word of the file in each of its sentences, adjectives first."""
    content: Mapping[str, Any] = yaml.safe_load(read_text(path))
    people = [(word, group, f"{word} person") for group, found in content["adjectives"].items() for word in found]
    people += [(word, group, word) for group, found in content["nouns"].items() for word in found]
    return tuple(
        GroupSentence(word, group, form.format(it=with_article(noun)), form.format(it="a person"))
        for word, group, noun in people
        for form in content["sentences"]
    )
