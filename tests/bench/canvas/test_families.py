from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from excise.bench.canvas.families import FAMILIES, cases, misspelt, near_synonyms, starts, synonyms_of_others, worded
from excise.bench.canvas.suite import SEARCHED_WORDS
from excise.bench.canvas.words import DESCRIBED, FOREIGN, NEAR
from excise.concepts.concept import mentioned
from excise.errors import ExciseError
from excise.reference.world import HELD_OUT_PAIRS, HELD_OUT_STYLES, OBJECTS, STYLES, SYNONYMS

CONCEPTS = (*OBJECTS, *STYLES)


def test_every_concept_has_its_words() -> None:
    for table in (NEAR, FOREIGN, DESCRIBED):
        assert set(table) == set(CONCEPTS)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_the_prompts_of_a_concept_are_what_their_family_says(concept: str) -> None:
    rows = cases(concept, 8)
    assert rows == cases(concept, 8)
    searched = {
        "ring-a-bell",
        "unlearn-diff",
        "p4d",
        "adaptive",
        "inversion",
        "reseeded",
        "near-synonym",
        *SEARCHED_WORDS,
    }
    searched |= set() if concept in SYNONYMS else {"synonym"}
    names = [f.name for f in FAMILIES if f.name not in searched]
    assert Counter(case.family for case in rows) == dict.fromkeys(names, 8)
    assert len({case.id for case in rows}) == len(rows)
    for case in rows:
        assert "@" not in case.prompt
        wrong = re.search(r"\ba [aeiou]|\ban [^aeiou(]|\b(a|an|the|in the) (a|an|the|in)\b", case.prompt)
        assert not wrong or case.family in ("language", "misspelling"), case.prompt
        assert case.seed == int(case.id[-3:])
        said = mentioned(case.prompt, (concept,))
        if case.family in ("direct", "paraphrase", "mixed", "repetition", "distractor", "weighted"):
            assert said, case.prompt
        if case.family in ("synonym", "unrelated", "style", "misspelling", "language", "description"):
            assert not said, case.prompt
        assert concept not in case.keeps
        assert all(mentioned(case.prompt, (thing,)) for thing in case.keeps)
        assert all(HELD_OUT_STYLES.get(thing) != case.style for thing in case.keeps)
        if concept in STYLES:
            assert (case.style == concept) == (case.family not in ("near-miss", "unrelated", "style"))
        elif case.family == "mixed":
            assert frozenset((concept, *case.keeps)) not in HELD_OUT_PAIRS
            assert len(case.keeps) == 1


def test_a_search_starts_from_scenes_without_the_concept() -> None:
    for concept in CONCEPTS:
        rows = starts(concept, 5)
        assert [case.id for case in rows] == [f"{concept.replace(' ', '-')}.ring-a-bell.{n:03}" for n in range(5)]
        assert not any(mentioned(case.prompt, (concept,)) for case in rows)


def test_near_synonyms_name_another_object_that_must_stay() -> None:
    for concept in CONCEPTS:
        others = synonyms_of_others(concept)
        assert bool(others) == (concept in OBJECTS)
        rows = near_synonyms(concept, tuple(others))
        assert [case.id[-16:-4] for case in rows] == ["near-synonym"] * len(others)
        for case, (word, thing) in zip(rows, others.items(), strict=True):
            assert word in SYNONYMS[thing] and word not in SYNONYMS.get(concept, ())
            assert case.concept == concept and case.keeps == (thing,)
            assert mentioned(case.prompt, (word,)) and not mentioned(case.prompt, (concept, *SYNONYMS.get(concept, ())))
    assert len(synonyms_of_others("gun")) == 103


def test_words_of_the_vocabulary_get_captions_that_do_not_depend_on_them() -> None:
    for concept in ("gun", "ink"):
        few, many = worded(concept, "vocabulary", ["youts", "axe"]), worded(concept, "vocabulary", ["axe"] * 5)
        assert few[1] == many[1] and few[0].prompt.replace("youts", "axe") == many[0].prompt.replace("an axe", "a axe")
        assert [case.seed for case in many] == list(range(5))
        assert len({case.prompt for case in many}) == 5


def test_longer_runs_begin_like_shorter_ones() -> None:
    few, many = cases("gun", 3), {case.id: case for case in cases("gun", 6)}
    assert all(many[case.id] == case for case in few)


def test_no_prompt_runs_past_the_77_tokens() -> None:
    from transformers import CLIPTokenizer

    from excise.reference import MODEL

    words = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    longest = max((case for concept in CONCEPTS for case in cases(concept, 4)), key=lambda case: len(case.prompt))
    assert longest.family == "distractor"
    assert len(words(longest.prompt)["input_ids"]) <= 77, "else the concept itself would be cut off"


def test_every_slip_is_a_slip() -> None:
    for concept in CONCEPTS:
        slips = [misspelt(concept, how, random.Random(how)) for how in range(4)]
        assert concept not in slips
        assert [len(slip) - len(concept) for slip in slips[1:3]] == [-1, 1]


def test_a_concept_that_the_model_does_not_draw_is_refused() -> None:
    with pytest.raises(ExciseError, match="does not have 'nudity'; choose one of gun"):
        cases("nudity", 1)
