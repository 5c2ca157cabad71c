from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from excise.errors import ExciseError
from excise.explain import Pattern, find_patterns, matches, measure
from excise.explain.patterns import Trie, words
from excise.neurons.contexts import Context


def neuron(rule: Callable[[list[str]], float]) -> Callable[[Sequence[str]], list[Context]]:
    """A neuron whose code at ⟨end⟩ is a rule of the prompt's words."""

    def activate(prompts: Sequence[str]) -> list[Context]:
        found = []
        for prompt in prompts:
            own = prompt.split()
            tokens = (own[0], *(f" {word}" for word in own[1:]), "⟨end⟩") if own else ("⟨end⟩",)
            found.append(Context(tokens, (*(0.0 for _ in own), rule(own))))
        return found

    return activate


def has(*wanted: str) -> Callable[[list[str]], float]:
    """8 where any of the words is there."""
    return lambda own: 8.0 * any(word in own for word in wanted)


def found(rule: Callable[[list[str]], float], prompts: Sequence[str], **options: Any) -> dict[str, tuple[int, float]]:
    activate = neuron(rule)
    return {p.text: (p.support, p.peak) for p in find_patterns(activate(prompts), activate, **options)}


def test_tokens_become_words():
    assert words(("a", " shot", "gun", ",", " t", "-", "shirt", "⟨end⟩")) == ["a", "shotgun", ",", "t", "-", "shirt"]
    assert words(("", " ", " a", " 4", "k", "⟨end⟩", "b")) == ["a", "4k", "b"]
    assert words(("a ", "b")) == ["a", "b"]


def test_a_word_alone():
    assert found(has("gun"), ["a photo of a gun on grass", "gun", "the old gun , at night"]) == {"gun": (3, 8.0)}


def test_two_words_with_anything_between_them():
    def rule(own: list[str]) -> float:
        return max((6.0 for a, b in zip(own, own[2:], strict=False) if (a, b) == ("toy", "gun")), default=0.0)

    prompts = ["a toy red gun here", "one toy old gun", "toy gun"]
    assert found(rule, prompts) == {"toy * gun": (2, 6.0)}


def test_what_is_said_twice_is_needed_once():
    assert found(has("gun", "rifle"), ["a gun and a rifle"]) == {"gun": (1, 8.0)}
    assert found(has("gun", "rifle"), ["gun gun", "rifle"]) == {"gun": (1, 8.0), "rifle": (1, 8.0)}


def test_a_neuron_that_fires_at_anything_is_told_so():
    assert found(lambda own: 3.0, ["a gun", "a cat on grass"]) == {"*": (2, 3.0)}
    assert found(lambda own: 3.0 * (len(own) > 1), ["a gun here"]) == {"* *": (1, 3.0)}


def test_half_the_peak_is_enough_or_what_is_asked_for():
    def rule(own: list[str]) -> float:
        return 4.0 * ("gun" in own) + 3.0 * ("night" in own)

    assert found(rule, ["a gun at night"]) == {"gun": (1, 4.0)}
    assert found(rule, ["a gun at night"], keep=0.6) == {"gun * night": (1, 7.0)}


def test_a_general_pattern_takes_in_the_special_ones():
    def rule(own: list[str]) -> float:
        return 9.0 if "gun" in own else 5.0 if "toy pistol" in " ".join(own) else 0.0

    prompts = ["a toy gun", "gun", "one toy pistol", "the toy pistol here"]
    assert found(rule, prompts) == {"gun": (2, 9.0), "toy pistol": (2, 5.0)}
    assert Pattern(("gun",), 1, 1.0).covers(Pattern(("toy", "gun", None), 1, 1.0))
    assert Pattern((None,), 1, 1.0).covers(Pattern(("gun",), 1, 1.0))
    assert Pattern(("toy", None), 1, 1.0).covers(Pattern((None, "toy", "gun"), 1, 1.0))
    assert not Pattern(("gun",), 1, 1.0).covers(Pattern((None,), 1, 1.0))
    assert not Pattern(("toy", None), 1, 1.0).covers(Pattern(("a", "toy"), 1, 1.0))


@pytest.mark.parametrize("seed", range(10))
def test_cutting_and_padding_against_one_prompt_at_a_time(seed):
    """Written once more, slowly: a neuron that sums weights of words, with a bonus for neighbours."""
    draw = random.Random(seed)
    vocabulary = [f"w{n}" for n in range(8)]
    weight = {word: draw.choice([0, 0, 0, 1, 5]) for word in vocabulary}
    bonus = set(draw.sample(list(itertools.product(vocabulary, vocabulary)), 8))

    def rule(own: list[str]) -> float:
        return float(sum(weight.get(w, 0) for w in own) + sum(4 * (p in bonus) for p in itertools.pairwise(own)))

    prompts = [" ".join(draw.choices(vocabulary, k=draw.randint(1, 7))) for _ in range(12)]
    expected: dict[tuple[str | None, ...], int] = {}
    for prompt in prompts:
        own: list[Any] = prompt.split()
        least = 0.5 * rule(own)
        if least == 0:
            continue
        while len(own) > 1 and rule(own[:-1]) >= least:
            own = own[:-1]
        while len(own) > 1 and rule(own[1:]) >= least:
            own = own[1:]
        least = 0.5 * rule(own)
        for n in range(len(own)):
            trial = [*own[:n], None, *own[n + 1 :]]
            if rule(["_" if word is None else word for word in trial]) >= least:
                own = trial
        expected[tuple(own)] = expected.get(tuple(own), 0) + 1
    activate = neuron(rule)
    patterns = find_patterns(activate(prompts), activate)
    assert patterns == find_patterns(activate(prompts), activate)
    assert {p.words for p in patterns} <= set(expected)
    assert sum(p.support for p in patterns) == sum(expected.values())
    for one, other in itertools.permutations(patterns, 2):
        assert not one.covers(other)
    for cut in expected:
        assert any(p.covers(Pattern(cut, 1, 1.0)) for p in patterns)


@pytest.mark.parametrize("seed", range(10))
def test_matches_against_a_search_at_every_place(seed):
    draw = random.Random(seed)
    shapes = {tuple(draw.choice(["a", "b", "c", None]) for _ in range(draw.randint(1, 4))) for _ in range(9)}
    patterns = [Pattern(shape, 1, draw.uniform(1, 9)) for shape in sorted(shapes, key=str)]
    for _ in range(20):
        prompt = draw.choices("abcd", k=draw.randint(0, 6))
        expected = [
            pattern
            for pattern in patterns
            if any(
                all(w is None or w == own for w, own in zip(pattern.words, prompt[n:], strict=False))
                for n in range(len(prompt) - len(pattern.words) + 1)
            )
        ]
        tokens = [f" {word}" for word in prompt]
        assert matches(patterns, tokens) == expected


def test_a_trie_joins_equal_patterns_and_shares_endings():
    trie = Trie()
    for pattern in (Pattern(("a", "gun"), 1, 2.0), Pattern((None, "gun"), 1, 3.0), Pattern(("a", "gun"), 2, 1.0)):
        trie.add(pattern)
    assert list(trie.below) == ["gun"]
    assert sorted(trie, key=lambda p: p.text) == [Pattern((None, "gun"), 1, 3.0), Pattern(("a", "gun"), 3, 2.0)]


def test_patterns_are_measured_on_other_contexts():
    patterns = [Pattern(("gun",), 3, 8.0)]
    held_out = [
        Context(("a", " gun"), (0.0, 4.0)),
        Context(("a", " rifle"), (0.0, 4.0)),
        Context(("no", " gun"), (0.0, 0.0)),
        Context(("a", " gun", "ner"), (0.0, 0.0, 0.0)),
    ]
    counts = measure(patterns, held_out)
    assert (counts.tp, counts.fn, counts.fp, counts.tn) == (1, 1, 1, 1)
    assert counts.precision == counts.tpr == 0.5


def test_nothing_to_find_and_impossible_input():
    activate = neuron(lambda own: 0.0)
    assert find_patterns([], activate) == find_patterns(activate(["a gun"]), activate) == ()
    assert find_patterns([Context(("⟨end⟩",), (3.0,))], activate) == ()
    with pytest.raises(ExciseError, match="share of the peak"):
        find_patterns([], activate, keep=0)
    fires = [Context(("a", " gun"), (0.0, 1.0))]
    with pytest.raises(ExciseError, match="1 prompts were to be read, but 0 contexts"):
        find_patterns(fires, lambda prompts: [])


def test_a_real_encoder_and_a_real_sae(tiny_pipe, tiny_site, word_sae):
    """Neuron 5 of the SAE was made to read "gun" against other nouns."""
    from excise.methods.prompt_codes import prompt_codes
    from excise.neurons.contexts import Contexts
    from excise.sites.tokens import pieces

    def read(prompts: Sequence[str]) -> Contexts:
        codes, ids = prompt_codes(tiny_pipe, word_sae, tiny_site, prompts)
        return Contexts(codes, [pieces(tiny_pipe.tokenizer, row) for row in ids.tolist()])

    def activate(prompts: Sequence[str]) -> list[Context]:
        own = read(prompts)
        return [own.context(prompt, 5) for prompt in range(len(own))]

    forms = ("a {} on grass", "a {} on sand", "{} on wood", "the {}")
    nouns = ("gun", "cat", "rose", "bus", "house", "frog", "star")
    contexts = read([form.format(noun) for form in forms for noun in nouns])
    patterns = find_patterns(contexts.top(5, 4), activate)
    assert [(pattern.text, pattern.support) for pattern in patterns] == [("gun", 4)]
    counts = measure(patterns, activate([f"a {noun} in the sky" for noun in nouns]))
    assert (counts.tp, counts.fp, counts.tn, counts.fn) == (1, 0, 6, 0)
