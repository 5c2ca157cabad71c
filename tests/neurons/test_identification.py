from __future__ import annotations

import math
import re

import pytest
import torch

from excise.concepts import builtin
from excise.errors import ExciseError
from excise.neurons import PromptCodes
from excise.neurons.identification import identify


def coded(tokens: list[list[dict[int, float]]], m: int = 6) -> PromptCodes:
    """Codes of prompts given as {neuron: value} a token."""
    t, k = max(map(len, tokens)), max(len(z) for prompt in tokens for z in prompt)
    values, indices = torch.zeros(len(tokens), t, k), torch.zeros(len(tokens), t, k, dtype=torch.long)
    scored = torch.zeros(len(tokens), t, dtype=torch.bool)
    for p, prompt in enumerate(tokens):
        for j, z in enumerate(prompt):
            scored[p, j] = True
            for i, (neuron, value) in enumerate(z.items()):
                values[p, j, i], indices[p, j, i] = value, neuron
    return PromptCodes(values, indices, scored, m)


CONCEPT = coded([[{0: 1.0, 1: 1.0}, {2: 3.0}], [{0: 1.0, 3: 0.1}, {2: 3.0, 4: 4.0}]])
DECONCEPT = coded([[{0: 1.0}], [{0: 1.0, 3: 0.5}]])


def test_worked_example():
    """By hand: N = 4; s_2 = 2/4 * (1 + 3/5), s_4 = 1/4 * 4/5, s_1 = 1/4 * 1/sqrt(2); 0 and 3 fire on both sides."""
    ranking = identify(CONCEPT, DECONCEPT)
    assert ranking.top(3) == (2, 4, 1)
    assert [e.score for e in ranking.entries] == pytest.approx([0.8, 0.2, 0.25 / math.sqrt(2)])
    assert [e.frequency for e in ranking.entries] == [2, 1, 1]
    assert all(e.deconcept_score == 0 for e in ranking.entries)
    assert ranking.near == ()  # 0 and 3 score higher on the deconcept side
    assert ranking.dominance == pytest.approx(4.0)


def test_tolerance_lets_a_spoilt_neuron_back_in():
    spoilt = coded([[{0: 1.0, 2: 0.01}], [{0: 1.0, 3: 0.5}]])
    strict = identify(CONCEPT, spoilt)
    assert strict.top(2) == (4, 1)
    assert [e.index for e in strict.near] == [2]
    with pytest.raises(ExciseError, match="neuron 2 comes closest"):
        strict.top(3)
    ranking = identify(CONCEPT, spoilt, tolerance=0.02)
    assert ranking.top() == (2,)
    assert 0 < ranking.entries[0].deconcept_score <= 0.02 * ranking.entries[0].score


def test_k_and_ties():
    assert len(identify(CONCEPT, DECONCEPT, k=2).entries) == 2
    tied = coded([[{5: 1.0}, {1: 1.0}]])
    assert identify(tied, DECONCEPT).top(2) == (1, 5)
    assert identify(tied, DECONCEPT, k=1).dominance == math.inf


def test_none_found():
    ranking = identify(CONCEPT, CONCEPT)
    assert ranking.entries == ()
    assert math.isnan(ranking.dominance)
    with pytest.raises(ExciseError, match="only 0 neurons"):
        ranking.top()


def test_bad_input():
    with pytest.raises(ExciseError, match="tolerance"):
        identify(CONCEPT, DECONCEPT, tolerance=-1)
    with pytest.raises(ExciseError, match="snce_per_pair"):
        identify(CONCEPT, DECONCEPT, score="sncee")
    with pytest.raises(ExciseError, match="one SAE"):
        identify(CONCEPT, DECONCEPT._replace(m=9))
    with pytest.raises(ExciseError, match="1 or more"):
        identify(CONCEPT, DECONCEPT).top(0)


def word_codes(prompts: list[str], vocabulary: dict[str, int]) -> PromptCodes:
    """An imaginary SAE with a neuron for each word, one for each position and one for 'two things'."""
    tokens = []
    for prompt in prompts:
        read = re.findall(r"[\w-]+|,", prompt)
        tokens.append(
            [
                {vocabulary.setdefault(key, len(vocabulary)): 1.0 for key in (word, f"position {i}")}
                | ({vocabulary.setdefault("two things", len(vocabulary)): 2.0} if "and" in read[:i] else {})
                for i, word in enumerate(read)
            ]
        )
    return coded(tokens, 500)


@pytest.mark.parametrize("score", ["snce", "snce_per_pair", "mean_difference"])
@pytest.mark.parametrize("name", ["gun", "knife", "apple", "cat", "rocket", "umbrella"])
def test_balanced_pairs_single_out_the_word_and_naive_pairs_the_conjunction(name, score):
    vocabulary: dict[str, int] = {}
    concept = builtin(name)
    sides = [
        word_codes(side, vocabulary)
        for side in ([p.concept for p in concept.pairs], [p.deconcept for p in concept.pairs])
    ]
    assert identify(*sides, score=score).top() == (vocabulary[name],)
    naive = (
        word_codes([f"a {name} and a dog", "a dog and a " + name], vocabulary),
        word_codes(["a dog"] * 2, vocabulary),
    )
    assert identify(*naive, score="snce").top() == (vocabulary["two things"],)
