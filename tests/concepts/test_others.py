"""Other words in a mention's place."""

from __future__ import annotations

from excise.concepts import words
from excise.concepts.others import FEWEST, others_like


def test_others_are_as_long_as_the_mention_and_never_the_concept() -> None:
    found = others_like("gun", "object", len, 8, ("gun", "cat"))
    assert len(found) >= FEWEST
    assert {len(word) for word in found} == {3}
    assert not {"gun", "cat"} & set(found)
    assert found == others_like("gun", "object", len, 8, ("gun", "cat"))


def test_each_kind_has_words_of_its_own() -> None:
    constant = lambda text: 1  # noqa: E731
    assert set(others_like("ink", "style", constant, 5, ("ink",))) <= {
        *words.STYLES,
        *words.MORE_STYLES,
        *words.TWO_WORD_STYLES,
    }
    assert set(others_like("Van Gogh", "style", constant, 5, ("Van Gogh",))) <= set(words.NAMED_STYLES)
    assert set(others_like("naked", "attribute", constant, 5, ("naked",))) <= set(words.ADJECTIVES)
    assert set(others_like("Paris", "object", constant, 5, ("Paris",))) <= set(words.NAMES)


def test_a_long_mention_is_met_by_phrases_of_its_length() -> None:
    def count(text: str) -> int:
        return len(text.split())

    found = others_like("a very long phrase", "object", count, 8, ())
    assert len(found) >= FEWEST
    assert {count(phrase) for phrase in found} == {4}
    assert len(others_like("gun", "object", lambda text: text == "gun", 8, ("gun",))) >= FEWEST, "no other is as long"
