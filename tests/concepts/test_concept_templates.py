from __future__ import annotations

import re
from collections import Counter
from functools import cache

import pytest

from excise.concepts import Concept, check, from_templates, words
from excise.concepts import builtin as make
from excise.concepts.concept import mentioned, without_mentions
from excise.concepts.templates import alike, with_article
from excise.errors import ExciseError
from excise.reference import captions, world

builtin = cache(make)
ALL = [*world.OBJECTS, *world.STYLES, "nudity", "violence"]


def tokens(text: str) -> list[str]:
    return re.findall(r"[\w-]+|,", text.lower())


@pytest.mark.parametrize("name", ALL)
def test_every_builtin_concept_is_sound(name):
    concept = builtin(name)
    assert len(concept.pairs) == 100
    assert len(concept.controls) == 60
    assert check(concept) == []
    deconcepts = {p.deconcept for p in concept.pairs}
    assert not deconcepts & set(concept.controls)


@pytest.mark.parametrize("name", world.OBJECTS)
def test_every_concept_prompt_has_a_twin_that_differs_in_the_mention_alone(name):
    concept = builtin(name)
    structures = {}
    for pair in concept.pairs:
        rest = tokens(without_mentions(pair.concept, concept.mentions))
        structures.setdefault(pair.concept, []).append((rest, tokens(pair.deconcept)))
    for twins in structures.values():
        rest, twin = twins[0]
        extra = Counter(twin) - Counter(rest)  # the other noun, its article where it is another one
        gone = Counter(rest) - Counter(twin)
        assert set(gone) <= {"a", "an"}
        assert sum(extra.values()) <= 3
        assert twin.count("and") == rest.count("and")


@pytest.mark.parametrize("name", ["gun", "apple", "ice cream", "cat"])
def test_concept_sides_have_all_structures(name):
    concept = builtin(name)
    sides = [p.concept for p in concept.pairs]
    others = [o for o in words.OBJECTS if o != name]
    partnered = [s for s in sides if mentioned(s, others)]
    first = [s for s in partnered if s.index(name) < s.index(mentioned(s, others) or "")]
    styled = [s for s in sides if mentioned(s, words.STYLES)]
    placed = [s for s in sides if any(place in s for place in words.PLACES)]
    assert 25 <= len(sides) - len(partnered) <= 60
    assert 20 <= len(first) <= 45
    assert 20 <= len(partnered) - len(first) <= 45
    assert 30 <= len(styled) <= 70
    assert 30 <= len(placed) <= 70
    assert any("style" in s for s in styled)
    assert any("style" not in s for s in styled)
    assert min(map(len, map(str.split, sides))) <= 3
    assert max(map(len, map(str.split, sides))) >= 15
    assert len({p.template for p in concept.pairs}) >= 12
    assert all(any(f" {j} " in s or j == "," for s in sides) for j in ("and", "next to", "with", "beside"))  # words: ok


def differential(concept: Concept) -> list[str]:
    """Eq. 6 by hand for an imaginary encoder with one neuron a word, a bigram without the concept, and a position."""
    sides: list[set[str]] = [set(), set()]
    for pair in concept.pairs:
        for side, text in zip(sides, (pair.concept, pair.deconcept), strict=True):
            read = tokens(text)
            side.update(read)
            side.update(f"position {i}" for i in range(len(read)))
    return sorted(sides[0] - sides[1])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [*world.OBJECTS, *world.STYLES])
def test_no_word_or_position_but_the_mention_separates_the_sides(name, seed):
    assert differential(builtin(name, seed=seed)) == sorted(name.split())


def test_pairs_with_the_mention_removed_let_the_conjunction_through():
    naive = Concept("gun", ("gun",), tuple(type(p)(p.concept, "a cat") for p in builtin("gun").pairs))
    assert "and" in differential(naive)
    assert any("'and'" in problem for problem in check(naive))


def test_only_training_wordings_and_no_held_out_synonym():
    assert set(words.FORMS) <= set(captions.FORMS["train"])
    assert set(words.JOINS) <= set(captions.JOINS["train"])
    assert set(words.PLACES) == {p for place in captions.PLACES.values() for p in place["train"]}
    assert (words.OBJECTS, words.STYLES) == (world.OBJECTS, world.STYLES)
    synonyms = [s for group in world.SYNONYMS.values() for s in group]
    for name in ALL[:-2]:
        concept = builtin(name)
        texts = (*concept.controls, *(t for p in concept.pairs for t in (p.concept, p.deconcept)))
        assert mentioned(" | ".join(texts), synonyms) is None


def test_same_arguments_same_pairs():
    assert from_templates("gun", ("gun",), seed=3) == from_templates("gun", ("gun",), seed=3)
    assert from_templates("gun", ("gun",), seed=3) != from_templates("gun", ("gun",), seed=4)


@pytest.mark.parametrize("n", [1, 7, 100, 400])
def test_any_number_of_pairs(n):
    assert len(from_templates("a knife or two", ("knife", "dagger"), n).pairs) == n


def test_all_mentions_are_used_and_never_as_filler():
    concept = from_templates("blades", ("knife", "dagger"))
    said = Counter(mentioned(p.concept, concept.mentions) for p in concept.pairs)
    assert min(said["knife"], said["dagger"]) >= 35
    assert check(concept) == []


def test_names_and_own_styles():
    paris = from_templates("Paris", ("Paris",))
    assert check(paris) == []
    assert not any("a Paris" in p.concept for p in paris.pairs)
    style = from_templates("painter", ("Van Gogh",), kind="style")
    assert check(style) == []
    assert all(mentioned(p.concept, ("Van Gogh",)) for p in style.pairs)


def test_words_of_the_templates_may_be_mentions():
    concept = from_templates("table", ("table", "picture", "sand"))
    assert check(concept) == []


@pytest.mark.parametrize(
    ("mentions", "n", "kind"),
    [((), 5, "object"), (("gun",), 0, "object"), (("gun", ""), 5, "object"), (("style", "in"), 5, "style")],
)
def test_impossible_wishes_are_refused(mentions, n, kind):
    with pytest.raises(ExciseError):
        from_templates("gun", mentions, n, kind=kind)


def test_unknown_concept_names_near_ones():
    with pytest.raises(ExciseError, match="bicycle"):
        builtin("bycicle")


def test_articles():
    assert with_article("apple") == "an apple"
    assert with_article("glossy apple") == "a glossy apple"
    assert with_article("Paris") == "Paris"
    assert "alarm clock" in alike("ice cream")
    assert "cat" in alike("gun")
