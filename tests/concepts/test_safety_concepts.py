from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from excise.concepts import builtin, check, names
from excise.concepts.concept import mentioned
from excise.concepts.minors import names_minors
from excise.concepts.safety import FRAMES, HARMLESS, PREFIX, TOPICS, bare, safety
from excise.errors import ExciseError

ARTICLES = ("a", "an", "the")


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_is_a_balanced_concept_of_a_hundred_pairs(topic: str) -> None:
    concept = safety(topic)
    assert len(concept.pairs) == len({(p.concept, p.deconcept) for p in concept.pairs}) == 100
    assert len(set(concept.controls)) == 60
    assert check(concept) == []
    for n in (20, 57, len(FRAMES) * len(TOPICS[topic])):
        assert check(safety(topic, n)) == [], n
    assert concept == builtin(PREFIX + topic) and PREFIX + topic in names()


@pytest.mark.parametrize("topic", TOPICS)
def test_sides_differ_in_one_phrase_of_the_same_make(topic: str) -> None:
    for phrase, twin in TOPICS[topic]:
        assert len(phrase.split()) == len(twin.split())
        articles = [text.split()[0] if text.split()[0] in ARTICLES else "" for text in (phrase, twin)]
        assert articles[0] == articles[1]
    twins = dict(TOPICS[topic])
    for pair in safety(topic).pairs:
        (phrase,) = (phrase for phrase in twins if pair.concept == pair.template.format(x=phrase))
        assert pair.deconcept == pair.template.format(x=twins[phrase])
        assert mentioned(pair.concept, (bare(phrase),))
    assert len(twins) == len(set(twins.values())) == 12


@pytest.mark.parametrize("topic", TOPICS)
def test_phrases_and_frames_come_equally_often(topic: str) -> None:
    concept = safety(topic)
    frames = Counter(pair.template for pair in concept.pairs)
    assert set(frames) == set(FRAMES) and max(frames.values()) - min(frames.values()) <= 1
    phrases = Counter(
        phrase
        for pair, (phrase, _) in product(concept.pairs, TOPICS[topic])
        if pair.template.format(x=phrase) == pair.concept
    )
    assert max(phrases.values()) - min(phrases.values()) <= 1


def test_the_same_arguments_give_the_same_pairs_and_another_seed_others() -> None:
    assert safety("fraud", 30, 1) == safety(f"{PREFIX}fraud", 30, 1)
    assert safety("fraud", 30, 1).pairs != safety("fraud", 30, 2).pairs


def test_no_sentence_names_a_minor_or_tells_how_to_do_anything() -> None:
    every = [frame.format(x=phrase) for frame in FRAMES for phrase in HARMLESS]
    every += [
        frame.format(x=phrase)
        for frame, pairs in product(FRAMES, TOPICS.values())
        for twins in pairs
        for phrase in twins
    ]
    assert not [text for text in every if names_minors(text)]
    # A frame tells that something was spoken of; none addresses the reader, or asks or orders anything.
    assert not [text for text in every if {"you", "your", "how"} & set(text.lower().strip(".?").split())]
    assert all(text.endswith(".") and text[0].isupper() for text in every)


def test_controls_are_about_none_of_the_topics() -> None:
    for topic in TOPICS:
        mentions = safety(topic).mentions
        assert not [phrase for phrase in HARMLESS if mentioned(phrase, mentions)]
        assert not [frame for frame in FRAMES if mentioned(frame, mentions)]


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(ExciseError, match="unknown safety topic 'frauds'; try fraud"):
        safety("frauds")
    for n in (0, 1 + len(FRAMES) * 12):
        with pytest.raises(ExciseError, match="cannot make"):
            safety("fraud", n)
    with pytest.raises(ExciseError, match="cannot make"):
        safety("fraud", controls=1 + len(FRAMES) * len(HARMLESS))
