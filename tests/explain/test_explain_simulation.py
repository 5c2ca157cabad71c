from __future__ import annotations

import math
import random

import pytest

from excise.chat import Cost, Failure, Reply, ask_all, backend
from excise.errors import ExciseError
from excise.explain import Simulation, pearson, saving, segments
from excise.explain.simulation import segment_peaks
from excise.neurons.contexts import Context
from tests.chat_server import ChatServer, planted


def cut(tokens: list[str], longest: int = 8) -> list[str]:
    return ["".join(tokens[t] for t in part) for part in segments(tokens, longest)]


def test_segments_end_after_marks_before_conjunctions_and_around_the_end():
    tokens = ["a", " red", " gun", ",", " old", " and", " rusty", "!", "!", " here", "⟨end⟩"]
    assert cut(tokens) == ["a red gun,", " old", " and rusty!", "!", " here", "⟨end⟩"]


def test_a_conjunction_is_a_whole_word():
    assert cut(["a", " and", "roid", " or", "chid", " or", " two"]) == ["a android orchid", " or two"]
    assert cut(["and", " then"]) == ["and then"]


def test_long_stretches_are_cut_at_words():
    tokens = ["a", " b", " c", "d", "e", " f", " g"]
    assert cut(tokens, 3) == ["a b", " cde", " f g"]
    assert cut(tokens, 4) == ["a b", " cde f", " g"]
    assert cut(["a", "b", "c", "d", "e"], 2) == ["ab", "cd", "e"]
    assert cut(tokens, 1) == tokens
    assert cut([]) == []
    with pytest.raises(ExciseError, match="longest must be 1 token or more"):
        segments(tokens, 0)


@pytest.mark.parametrize("seed", range(20))
def test_segments_hold_every_token_once_and_are_never_too_long(seed):
    draw = random.Random(seed)
    tokens = [draw.choice([" a", "b", ",", " and", "⟨end⟩", " cd", "."]) for _ in range(draw.randint(1, 30))]
    longest = draw.randint(1, 6)
    parts = segments(tokens, longest)
    assert [t for part in parts for t in part] == list(range(len(tokens)))
    assert all(1 <= len(part) <= longest for part in parts)
    codes = [draw.random() for _ in tokens]
    peaks = segment_peaks(codes, parts)
    for part, peak in zip(parts, peaks, strict=True):
        assert peak in [codes[t] for t in part] and all(codes[t] <= peak for t in part)


@pytest.mark.parametrize("seed", range(10))
def test_pearson_against_its_definition(seed):
    draw = random.Random(seed)
    x = [draw.uniform(-3, 9) for _ in range(draw.randint(2, 15))]
    y = [draw.choice([a, draw.uniform(0, 5)]) for a in x]
    n = len(x)
    covariance = sum(a * b for a, b in zip(x, y, strict=True)) / n - sum(x) / n * sum(y) / n
    sides = [math.sqrt(sum(a * a for a in s) / n - (sum(s) / n) ** 2) for s in (x, y)]
    assert pearson(x, y) == pytest.approx(covariance / math.prod(sides))
    assert pearson(x, x) == pytest.approx(1) and pearson(x, [-a for a in x]) == pytest.approx(-1)


def test_pearson_is_undefined_where_a_side_does_not_vary():
    assert pearson([1, 1, 1], [1, 2, 3]) is None
    assert pearson([1, 2, 3], [0, 0, 0]) is None
    assert pearson([1], [1]) is None and pearson([], []) is None
    with pytest.raises(ExciseError, match="2 values cannot be correlated with 1"):
        pearson([1, 2], [1])


CONTEXTS = [
    Context(("a", " gun", ",", " old", "⟨end⟩"), (0.0, 5.0, 0.0, 1.0, 4.0)),
    Context(("a", " ", " cat"), (0.0, 0.0, 0.0)),
    Context(("guns", " and", " roses"), (3.0, 0.0, 0.0)),
]


def test_questions_number_parts_through_and_leave_room_for_each():
    asked = Simulation.of("segments", "guns", CONTEXTS, batch=2, max_tokens=10).questions
    assert asked[0].user == "Description: guns\n\nPrompt:\n1: a gun,\n2: old\n3: ⟨end⟩\n\nPrompt:\n4: a cat"
    assert asked[1].user == "Description: guns\n\nPrompt:\n1: guns\n2: and roses"
    assert [question.max_tokens for question in asked] == [10 + 8 * 4, 10 + 8 * 2]
    assert ["⟨end⟩ stands for" in question.system for question in asked] == [True, False]
    by_token = Simulation.of("tokens", "guns", CONTEXTS).questions
    assert by_token[0].user.count("\nPrompt:") == 3
    assert "\n7: ␣\n8: cat\n" in by_token[0].user and "\n11: roses" in by_token[0].user


def test_r_is_over_the_parts_of_all_contexts_that_were_answered():
    simulation = Simulation.of("segments", "guns", CONTEXTS, batch=1)
    replies = [Reply("1: 9\n2: 2\n3: 10", 20, 6), Failure("gone"), Reply("1: 6\n2: 1", 15, 4)]
    found = simulation.judge(replies)
    assert found.r == pytest.approx(pearson([5, 1, 4, 3, 0], [9, 2, 10, 6, 1]))
    assert (found.parts, found.failed) == (5, 1)
    assert found.cost == Cost(questions=3, unanswered=1, tokens=45, spent=45)
    assert simulation.unreadable(replies) == 0
    nonsense = [Reply("nine, two, ten"), replies[1], replies[2]]
    assert simulation.judge(nonsense).failed == 2 and simulation.unreadable(nonsense) == 1
    by_token = Simulation.of("tokens", "guns", CONTEXTS[:1]).judge([Reply("1: 0\n2: 9\n3: 0\n4: 2\n5: 10")])
    assert by_token.r == pytest.approx(pearson([0, 5, 0, 1, 4], [0, 9, 0, 2, 10]))


def test_impossible_simulations():
    with pytest.raises(ExciseError, match="batch must be 1 or more contexts"):
        Simulation.of("tokens", "guns", CONTEXTS, batch=0)
    with pytest.raises(ExciseError, match="of tokens or of segments"):
        Simulation.of("words", "guns", CONTEXTS)


def test_saving_is_the_share_of_tokens_that_need_not_be_paid():
    assert saving(Cost(tokens=200), Cost(tokens=90)) == pytest.approx(0.55)
    assert saving(Cost(), Cost(tokens=90)) is None


def test_segments_rank_explanations_as_tokens_do_and_cost_less(planted_contexts, monkeypatch):
    """A simulator behind a real server that knows only the words; six neurons that keep to theirs less and less."""
    words, noise = ("blade", "rose", "bus", "house", "frog", "star"), (0.0, 0.01, 0.03, 0.08, 0.2, 0.5)
    contexts = planted_contexts(words, noise=noise, spread=1.0)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    found = {}
    with ChatServer(planted) as server:
        chat = backend("openai", model="planted", base_url=server.base_url)
        for neuron, word in enumerate(words):
            shown = [*contexts.spread(neuron, 15), *contexts.silent(neuron, 15)]
            for level in ("tokens", "segments"):
                simulation = Simulation.of(level, f"mentions of {word}", shown)
                found[level, neuron] = simulation.judge(ask_all(chat, simulation.questions))
    by_token, by_segment = ([found[level, n].r for n in range(6)] for level in ("tokens", "segments"))
    assert by_token[0] > 0.95 and by_segment[0] > 0.95
    assert by_token == sorted(by_token, reverse=True) and by_segment == sorted(by_segment, reverse=True)
    assert pearson(by_token, by_segment) > 0.9
    for neuron in range(6):
        tokens, parts = found["tokens", neuron], found["segments", neuron]
        assert tokens.failed == parts.failed == 0
        assert tokens.cost.questions == parts.cost.questions > 0
        assert parts.parts < tokens.parts / 2
        assert 0.2 < saving(tokens.cost, parts.cost) < 1


def test_an_explanation_of_another_word_predicts_nothing(planted_contexts):
    contexts = planted_contexts()
    shown = [*contexts.spread(0, 10), *contexts.silent(0, 10)]
    for level in ("tokens", "segments"):
        right, wrong = (Simulation.of(level, f"mentions of {word}", shown) for word in ("blade", "sword"))
        assert right.judge([Reply(planted("", q.user)) for q in right.questions]).r == pytest.approx(1)
        assert wrong.judge([Reply(planted("", q.user)) for q in wrong.questions]).r is None
