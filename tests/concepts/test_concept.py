from __future__ import annotations

import pytest

from excise.concepts import Concept, Pair
from excise.concepts.concept import mentioned, without_mentions
from excise.errors import ExciseError


@pytest.mark.parametrize(("name", "mentions"), [("", ("gun",)), ("gun", ()), ("gun", ("gun", " "))])
def test_a_concept_needs_a_name_and_words(name, mentions):
    with pytest.raises(ExciseError):
        Concept(name, mentions)


@pytest.mark.parametrize(("concept", "deconcept"), [("", "a cat"), ("a gun", " ")])
def test_a_pair_needs_both_sides(concept, deconcept):
    with pytest.raises(ExciseError, match="empty"):
        Pair(concept, deconcept)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a Gun, and a cat", "Gun"),
        ("two guns", "guns"),
        ("two buses", None),
        ("a gunner", None),
        ("an ice  cream cone", "ice  cream"),
        ("a scarf", None),
    ],
)
def test_mentions_are_found_as_whole_words(text, found):
    assert mentioned(text, ("gun", "ice cream", "car")) == found


def test_mentions_are_blanked_longest_first():
    assert without_mentions("a pocket knife and a knife", ("knife", "pocket knife")).split() == ["a", "and", "a"]
