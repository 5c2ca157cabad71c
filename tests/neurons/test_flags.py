"""Wording and flags against brute-force readings of their definitions."""

from __future__ import annotations

import random

import pytest

from excise.neurons import flags
from excise.neurons.contexts import Context
from excise.neurons.flags import Caught, Flag, Group
from excise.neurons.wording import (
    CONCEPT,
    TOP_WORDS,
    Use,
    effective_words,
    is_function_word,
    merged,
    occurrences,
    own_words,
    trigger,
    uses,
    words,
)

END = "⟨end⟩"
LEXICON = ("cat", "gun", "and", "a", "ice", "cream", "on", "wood")


def spoken(text: str, codes: dict[int, float] | None = None) -> Context:
    """A context of whole words, each a token, with the codes at those places."""
    tokens = [w if n == 0 else f" {w}" for n, w in enumerate(text.split())] + [END]
    return Context(tuple(tokens), tuple((codes or {}).get(n, 0.0) for n in range(len(tokens))))


def at_random(n: int, seed: int = 0) -> list[Context]:
    rng, out = random.Random(seed), []
    for _ in range(n):
        text = " ".join(rng.choices(LEXICON, k=rng.randint(1, 7)))
        places = rng.sample(range(len(text.split()) + 1), rng.randint(0, 2))
        out.append(spoken(text, {place: rng.uniform(0.1, 9) for place in places}))
    return out


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (("a", " gun", " on", " grass", END), ["a", "gun", "on", "grass", END]),
        ((" sti", "let", "to", ",", " a", " B", "us"), ["stiletto"] * 3 + [",", "a", "bus", "bus"]),
        (("artist", "'s", " cap", ".", "5", END), ["artist's", "artist's", "cap", ".", "5", END]),
        (("double", " -", " decker"), ["double", "-", "decker"]),
        ((), []),
    ],
)
def test_tokens_are_put_together_as_words(tokens: tuple[str, ...], expected: list[str]) -> None:
    assert words(tokens) == expected


def test_the_trigger_is_the_first_word_at_half_the_peak() -> None:
    for context in at_random(300):
        loud = [n for n, code in enumerate(context.codes) if context.peak > 0 and code >= context.peak / 2]
        expected = None if not loud else context.tokens[min(loud)].strip()
        assert trigger(context) == expected
    assert trigger(spoken("a gun on wood", {0: 2.4, 1: 5.0, 3: 4.0})) == "gun", "what is below half is a stray"
    assert trigger(spoken("a gun on wood", {0: 2.5, 1: 5.0})) == "a"


def test_uses_are_means_over_all_prompts_with_the_word() -> None:
    contexts, own = at_random(400, seed=1), frozenset({"ice", "cream"})
    standing = occurrences((c.tokens for c in contexts), own)

    def name(word: str) -> str:
        return CONCEPT if word in own else word

    found = {use.word: use for use in uses((c for c in contexts if c.peak > 0), standing, own)}
    for word in {name(w) for w in LEXICON}:
        with_it = [c for c in contexts if word in {name(t.strip()) for t in c.tokens}]
        set_off = [c.peak if (t := trigger(c)) and (name(t) == word) else 0.0 for c in with_it]
        # At the end of a text a mention goes before.
        ends = [c.peak for c in contexts if trigger(c) == END] if word == CONCEPT else []
        use = found[word]
        assert use.prompts == len(with_it)
        assert use.fired == sum(code > 0 for code in set_off) + len(ends)
        assert use.response == pytest.approx((sum(set_off) + sum(ends)) / len(with_it))
    assert END not in found, "with a concept, the end token counts as the concept"
    assert END in {
        use.word for use in uses((c for c in contexts if c.peak > 0), occurrences(c.tokens for c in contexts))
    }


def test_parts_merge_into_the_whole() -> None:
    contexts = at_random(200, seed=2)
    halves = contexts[:80], contexts[80:]
    standing = [occurrences(c.tokens for c in half) for half in halves]
    apart = [uses(half, own) for half, own in zip(halves, standing, strict=True)]
    together = merged(apart, standing[0] + standing[1])
    for found, expected in zip(together, uses(contexts, occurrences(c.tokens for c in contexts)), strict=True):
        assert (found.word, found.prompts, found.fired) == (expected.word, expected.prompts, expected.fired)
        assert found.response == pytest.approx(expected.response)


def test_effective_words_counts_what_is_answered_alike() -> None:
    def of(*responses: float) -> float:
        return effective_words([Use(str(n), 1, 1, r) for n, r in enumerate(responses)])

    assert of() == 0.0
    assert of(0.0, 0.0) == 0.0
    for n in (1, 2, 5):
        assert of(*[3.7] * n) == pytest.approx(n)
    assert of(3, 1) == pytest.approx(16 / 10) == of(300, 100)
    assert of(*[1.0] * 50) == pytest.approx(TOP_WORDS)
    assert of(50, *[0.05] * 9) < 1.02, "faint answers hardly count"


def test_own_words_and_function_words() -> None:
    assert {"ice", "cream", "creams", "gelato", "gelatos"} <= own_words(["Ice cream", "gelato"])
    assert all(map(is_function_word, ("and", "a", "the", "on", "beside", ",", "…", "-")))  # words: ok
    assert not any(map(is_function_word, ("gun", "pastel", END, CONCEPT, "")))


def test_structural_by_controls_and_by_function_words() -> None:
    assert flags.structural("n", 60, 3, []) is None, "5 % is not above 5 %"
    flag = flags.structural("n", 60, 4, [])
    assert (
        flag is not None and flag.severity == "red" and flag.evidence == ("n fires in 4 of 60 control prompts (7 %)",)
    )
    assert flags.structural("n", 0, 0, []) is None
    assert flags.structural("n", 60, 0, [Use("and", 19, 19, 5.0), Use("gun", 100, 100, 5.0)]) is None
    assert flags.structural("n", 60, 0, [Use("and", 20, 1, 5.0)]) is None
    flag = flags.structural("n", 60, 0, [Use("on", 40, 3, 1.0), Use("and", 20, 18, 5.0)])
    assert flag is not None
    assert flag.evidence[0] == "“and” sets n off in 18 of 20 prompts with it (90 %)", "what is worst comes first"
    assert "“on”" in flag.evidence[1]


def test_polysemantic_where_two_words_weigh_alike() -> None:
    assert flags.polysemantic("n", [Use(CONCEPT, 9, 9, 50.0), Use("knife", 9, 9, 20.0)]) is None
    assert flags.polysemantic("n", []) is None
    flag = flags.polysemantic("n", [Use(CONCEPT, 9, 9, 50.0), Use("umbrella", 9, 9, 50.0)])
    assert flag is not None and flag.severity == "red"
    assert flag.evidence[0].startswith("n fires as if for 2.0 words equally: “⟨concept⟩” 50.0, “umbrella” 50.0")


def test_a_neighbour_splits_the_concept_by_both_shares() -> None:
    rows = [(7, 0.4, 1.0, 0.0), (8, 0.4, 0.49, 0.0), (9, 0.4, 1.0, 0.06)]
    flag = flags.split_concept("n", rows)
    assert flag is not None and flag.severity == "note"
    assert len(flag.evidence) == 1 and flag.evidence[0].startswith("neuron 7 ")


@pytest.mark.parametrize(
    ("opened", "relative", "caught"),
    [(4, 1.0, True), (4, 0.5, True), (4, 0.49, False), (3, 1.0, False), (0, 0.0, False), (4, None, True)],
)
def test_a_word_is_caught_in_every_sentence_and_by_half(opened: int, relative: float | None, caught: bool) -> None:
    word = Caught("rifle", opened, 4, relative)
    assert word.caught is caught
    flag = flags.not_caught([word])
    assert (flag is None) is caught
    assert flag is None or f"changed in {opened} of 4 sentences" in flag.evidence[0]


def test_without_a_sentence_nothing_is_caught() -> None:
    assert not Caught("rifle", 0, 0, None).caught


def test_touching_is_counted_in_prompts() -> None:
    assert flags.touches(0, 0) is None
    assert flags.touches(20, 2000) is None
    red, note = flags.touches(21, 2000), flags.touches(21, 2000, "note")
    assert red is not None and red.severity == "red" and "21 of 2000" in red.evidence[0]
    assert note is not None and note.severity == "note"


def test_groups_are_red_where_something_happens_to_them() -> None:
    quiet = Group("Polish", "nationality", 3, 0, 0, None, None)
    touched = Group("Black", "ethnicity", 3, 1, 0, 0.08, "a portrait of a Black person")
    answered = Group("deaf", "disability", 3, 0, 2, None, None)
    stirred = Group("gay", "orientation", 3, 0, 1, None, None)
    red, note = flags.protected([quiet, stirred, answered, touched])
    assert (red.severity, note.severity) == ("red", "note")
    assert [line.split()[0] for line in red.evidence] == ["“Black”", "“deaf”"]
    assert (
        "changed in 1 of 3 sentences, most in “a portrait of a Black person”, 8 % as much as the name"
        in red.evidence[0]
    )
    assert note.evidence == ("“gay” (orientation): a neuron fires in 1 of 3",)
    assert flags.protected([quiet]) == []


def test_flags_of_a_kind_are_joined_red_ones_first() -> None:
    found = flags.joined(
        [
            flags.structural("neuron 1", 10, 5, []),
            None,
            flags.touches(9, 10, "note"),
            flags.structural("neuron 2", 10, 6, []),
            flags.no_bite("it did nothing"),
            flags.no_bite(None),
        ]
    )
    assert [(flag.kind, flag.severity, len(flag.evidence)) for flag in found] == [
        ("no bite", "red", 1),
        ("structural", "red", 2),
        ("touches too much", "note", 2),
    ]
    assert all(isinstance(flag, Flag) and flag.threshold for flag in found)
