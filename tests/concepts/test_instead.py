"""Pairs with another word in a concept's place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from excise.concepts import Concept, Pair, builtin
from excise.concepts.concept import mentioned
from excise.concepts.instead import NOTHING, pairs_instead, with_instead
from excise.errors import ExciseError

GUN = Concept(
    "gun",
    ("gun", "hand gun"),
    (
        Pair("a gun on grass", "a cat on grass", "one"),
        Pair("a gun on grass", "grass", "one"),
        Pair("two hand guns", "two cats", "two"),
        Pair("a weapon", "a cat", "three"),
    ),
)


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("a gun on grass", "apple", "an apple on grass"),
        ("A gun on grass", "apple", "An apple on grass"),
        ("an ink gun", "apple", "an ink apple"),
        ("the gun, a cat", "apple", "the apple, a cat"),
        ("a hand  gun and a gun", "bus", "a bus and a bus"),
        ("guns and begun", "bus", "bus and begun"),
        ("a gun", "Paris", "Paris"),
        ("a gun", "an empty scene", "an empty scene"),
        ("a cat", "bus", "a cat"),
    ],
)
def test_the_word_takes_every_mentions_place(text: str, word: str, expected: str) -> None:
    assert with_instead(text, GUN.mentions, word) == expected


def test_each_prompt_with_the_concept_is_paired_once() -> None:
    assert pairs_instead(GUN, "apple") == (
        Pair("a gun on grass", "an apple on grass", "one"),
        Pair("two hand guns", "two apple", "two"),
    )


def test_nothing_is_what_the_pairs_have_that_leave_it_out() -> None:
    out = (
        Pair("a gun on grass", "grass"),
        Pair("a gun and a cat", "a cat"),
        Pair("an ink gun", "nothing in ink style"),
        Pair("a gun on sand", "An empty scene on sand"),
        Pair("a picture of a gun", "a picture"),
    )
    others = (Pair("a gun on grass", "a cat on grass"), Pair("a gun", "a nothingness"))
    assert pairs_instead(replace(GUN, pairs=(*others, *out)), NOTHING) == out
    with pytest.raises(ExciseError, match=r"4 pairs leave 'gun' out, .* but 5 are needed"):
        pairs_instead(replace(GUN, pairs=(*others, *out[1:])), NOTHING)


@pytest.mark.parametrize("name", ["gun", "ink", "nudity", "ice cream"])
def test_pairs_from_templates_leave_every_kind_of_concept_out(name: str) -> None:
    concept = builtin(name)
    kept = pairs_instead(concept, NOTHING)
    assert 5 <= len(kept) <= 40
    assert not any(mentioned(pair.deconcept, concept.mentions) for pair in kept)


def test_what_cannot_take_its_place() -> None:
    with pytest.raises(ExciseError, match="replace_with is 'toy gun', but 'gun' is to be erased"):
        pairs_instead(GUN, "toy gun")
    with pytest.raises(ExciseError, match="which names a minor"):
        pairs_instead(GUN, "child")
    with pytest.raises(ExciseError, match="no pair mentions 'gun', so 'apple' cannot take its place"):
        pairs_instead(Concept("gun", ("gun",), GUN.pairs[3:]), "apple")
