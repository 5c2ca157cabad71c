from __future__ import annotations

import pytest

from excise.explain.explainer import explanation_question, parse_explanation
from excise.explain.wording import active, levels, listed_answers, marked, numbered_answers
from excise.neurons.contexts import Context

CONTEXT = Context(("a", " red", " gun", ",", " old", "⟨end⟩"), (0.0, 2.0, 8.0, 0.0, 0.1, 4.0))


def test_marks_join_neighbours_and_leave_the_space_outside():
    assert marked(CONTEXT, [1, 2]) == "a <<red gun>>, old ⟨end⟩"
    assert marked(CONTEXT, [0, 2, 5]) == "<<a>> red <<gun>>, old <<⟨end⟩>>"
    assert marked(CONTEXT, []) == "a red gun, old ⟨end⟩"
    assert CONTEXT.text == "a red gun, old"


def test_text_cannot_forge_marks_or_lines():
    context = Context(("a", " <<", "gun", ">>", "\nPrompt", " 2:", ""), (0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0))
    assert marked(context, [2]) == "a ‹‹<<gun>>›› Prompt 2:"
    assert context.text == "a <<gun>> Prompt 2:"
    assert marked(context, [6]) == "a ‹‹gun›› Prompt 2:"


def test_active_tokens_are_those_with_a_share_of_the_peak():
    assert active(CONTEXT, 0.3) == [2, 5]
    assert active(CONTEXT, 0.25) == [1, 2, 5]
    assert active(CONTEXT, 0) == [1, 2, 4, 5]
    assert active(Context(("a",), (0.0,)), 0.3) == []


def test_levels_are_tenths_of_the_top_rounded_up():
    assert levels(CONTEXT.codes, 8.0) == [0, 3, 10, 0, 1, 5]
    assert levels([9.0], 8.0) == [10]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("1: 0\n2: 10\n3: 2.5", [0, 10, 2.5]),
        ("Here you are:\n3. 1\n1) 2\n**2**: **3**\nDone.", [2, 3, 1]),
        ("1\t0\n2 = 4\n3 5", [0, 4, 5]),
        ("1: 0\n2: 10", None),
        ("1: 0\n2: 10\n2: 9\n3: 1", None),
        ("1: 0\n2: 11\n3: 1", None),
        ("1: 0\n2: -1\n3: 1", None),
        ("1: a gun\n2: 10\n3: 0", None),
        ("1.5\n2: 1\n3: 1", None),
        ("", None),
    ],
)
def test_numbered_answers(text, read):
    assert numbered_answers(text, 3) == read


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("[1, 0, 1]", [True, False, True]),
        ("For [0, 0, 0] no; I say\n[1,0, 1 ,]", [True, False, True]),
        ("[1, 0]", None),
        ("[1, 0, 1, 1]", None),
        ("[1, 2, 1]", None),
        ("1, 0, 1", None),
        ("[1, 0, 1] or rather [1]", None),
    ],
)
def test_listed_answers(text, read):
    assert listed_answers(text, 3) == read


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("They all have guns.\nExplanation: guns and rifles", "guns and rifles"),
        ("**Explanation:** *guns*\n", "guns"),
        ("[EXPLANATION]: guns", "guns"),
        ('explanation: "guns"\nNo.\nExplanation: rifles', "rifles"),
        ("  guns \n\n", "guns"),
        ("I think\nthey are guns", None),
        ("Explanation:\n", None),
        ("Explanation: " + "gun " * 60, ("gun " * 60).strip()),
        ("gun " * 60, None),
        ("Explanation: " + "gun " * 101, None),
        ("", None),
    ],
)
def test_explanations_are_found_in_answers(text, read):
    assert parse_explanation(text) == read


def test_the_question_shows_marks_and_strengths_relative_to_the_largest_of_all():
    other = Context(("a", " rifle"), (0.0, 16.0))
    question = explanation_question([other, CONTEXT], max_tokens=99)
    assert question.user == (
        "Prompt 1: a <<rifle>>\nFires at: rifle 10\n\nPrompt 2: a red <<gun>>, old <<⟨end⟩>>\nFires at: gun 5, ⟨end⟩ 3"
    )
    assert "⟨end⟩ stands for" in question.system and question.max_tokens == 99
    assert "⟨end⟩" not in explanation_question([other]).system
