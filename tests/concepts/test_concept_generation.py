from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from excise.concepts import Concept, Pair, check, from_templates, names, safety
from excise.concepts import sifting as s
from excise.concepts.answers import parse
from excise.concepts.concept import mentioned
from excise.concepts.generation import STRUCTURES, question, recipe
from excise.concepts.minors import names_minors
from excise.concepts.sifting import Candidate, differs, faults, sift
from excise.errors import ExciseError

GUN = ("gun",)
NOUNS = ("cat", "dog", "bus", "rose", "star", "house", "frog", "cake", "crown", "tree", "horse", "guitar")
TWINS = [Candidate(f"a gun and a {a} {where}", f"a {b} and a {a} {where}")
         for where in ("on grass", "at sunset") for a, b in zip(NOUNS, NOUNS[1:] + NOUNS[:1], strict=True)]  # fmt: skip


def sides(candidates: list[Candidate]) -> list[tuple[str, str]]:
    return [(c.concept, c.deconcept) for c in candidates]


FORMS = {
    "json lines": lambda a, b: json.dumps({"concept": a, "deconcept": b}),
    "other keys": lambda a, b: json.dumps({"Concept prompt": a, "De-concept_prompt": b}),
    "pretty json": lambda a, b: json.dumps({"concept": a, "deconcept": b}, indent=2),
    "json lists": lambda a, b: json.dumps([a, b]) + ",",
    "numbered json": lambda a, b: '7. {"concept": ' + json.dumps(a) + ', "deconcept": ' + json.dumps(b) + "},",
    "bar": lambda a, b: f"{a} | {b}",
    "numbered bar": lambda a, b: f"12) {a} | {b}",
    "table row": lambda a, b: f"| 3 | {a} | {b} |",
    "bullet with arrow": lambda a, b: f'- "{a}" → "{b}"',
    "ascii arrow": lambda a, b: f"* {a} -> {b}",
    "tab": lambda a, b: f"{a}\t{b}",
    "labels": lambda a, b: f"**Concept 4:** “{a}”\n**Deconcept 4:** “{b}”\n",
    "labels on a line": lambda a, b: f"Concept: {a} | Deconcept: {b}",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_answer_gives_the_same_pairs(form):
    said = [("a gun, a cat and 3 [red] stars", "a dog, a cat and 3 [red] stars"), ("gun", "an “owl”'s nest.")]
    found, broken = parse("\n".join(form(*pair) for pair in said))
    assert sides(found)[0] == said[0] and not broken
    assert found[1].concept == "gun" and found[1].deconcept.startswith("an “owl”'s nest")


def test_a_whole_document_is_read_too():
    listed = {"pairs": [{"concept": "a", "deconcept": "b"}, {"concept": "only one side"}, ["c", "d"]]}
    found, broken = parse(f"```json\n{json.dumps(listed, indent=1)}\n```")
    assert sides(found) == [("a", "b"), ("c", "d")]
    assert broken == ['{"concept": "only one side"}']
    by_number = {"1": {"concept": "a", "deconcept": "b"}, "2": {"concept": "c", "deconcept": "d"}}
    assert sides(parse(json.dumps(by_number))[0]) == [("a", "b"), ("c", "d")]


def test_what_cannot_be_read_comes_back_in_its_order():
    answer = "\n".join(
        (
            "<think>a gun | a thought\nnot said</think>Sure:",  # words: ok
            "---",
            "1. a gun | a cat",
            "Concept: one that has no other",
            "Concept: a gun on sand",
            "Deconcept: a dog on sand",
            "see [1]",
            '{"concept": "a gun", "deconcept": 3}',
            '{"concept": "a gun in the',
        )
    )
    found, broken = parse(answer)
    assert sides(found) == [("a gun", "a cat"), ("a gun on sand", "a dog on sand")]
    assert broken == [
        "Sure:",
        "Concept: one that has no other",
        "see [1]",
        '{"concept": "a gun", "deconcept": 3}',
        '{"concept": "a gun in the',
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(FORMS)), st.booleans()), max_size=12))
def test_no_line_is_ever_dropped(lines: list[tuple[str, bool]]) -> None:
    answer, good, bad = [], [], []
    for i, (form, readable) in enumerate(lines):
        pair = (f"a gun number {i} here", f"a cat number {i} here")
        answer.append(FORMS[form](*pair) if readable else f"chatter {i} of the model")
        (good if readable else bad).append(pair if readable else f"chatter {i} of the model")
    found, broken = parse("\n".join(answer))
    assert sides(found) == good and broken == bad


def test_planted_bad_pairs_are_rejected_each_with_its_reason():
    bad = {
        s.EMPTY: Candidate("a gun on sand", " \u200b "),
        s.HOLDS_MENTION: Candidate("a gun on a car", "two Guns on a car"),
        s.NO_MENTION: Candidate("a gunship on sand", "a cat on sand"),
        s.NAMES_MINOR: Candidate("a gun beside a girl", "a cat beside a girl"),  # words: ok
        s.TOO_LONG: Candidate("a gun " + "very " * 50, "a cat " + "very " * 50),
        s.DUPLICATE: Candidate(" A gun and a cat  on grass.", "a dog and a cat on grass"),
        s.OTHER_WORDING: Candidate("a gun and a pizza", "a pizza"),
    }
    sifted = sift([*TWINS, *bad.values()], GUN, 50)
    assert sides(list(sifted.kept)) == sides(TWINS)
    assert sifted.counts() == dict.fromkeys(bad, 1)
    details = {r.reason: r.detail for r in sifted.rejected}
    assert details[s.HOLDS_MENTION] == "'Guns'"
    assert details[s.OTHER_WORDING] == "'and' is lost"
    related = sift([Candidate("a gun and a cat", "a revolver and a cat")], GUN, 1, ("revolver",)).rejected
    assert [(r.reason, r.detail) for r in related] == [(s.HOLDS_MENTION, "'revolver'")]


def test_pairs_that_always_lose_their_conjunction_are_none_at_all():
    always = [Candidate(f"a gun and a {noun}", f"a {noun}") for noun in NOUNS]
    sifted = sift(always, GUN, 100)
    assert sifted.kept == () and sifted.counts() == {s.OTHER_WORDING: len(NOUNS)}
    # With their twins they are accepted: those exclude the neuron of "and" out.
    twins = [Candidate(f"a gun and a {noun}", f"a key and a {noun}") for noun in NOUNS]
    assert len(sift([*always, *twins], GUN, 100).kept) == 2 * len(NOUNS)


def test_a_word_on_concept_sides_only_is_brought_into_balance():
    # Each by itself a twin: one word of five may be another.
    smoking = [
        Candidate(f"a smoking gun next to the {a} on grass", f"a big lamp next to the {a} on grass") for a in NOUNS
    ]
    sifted = sift([*smoking, *TWINS], GUN, 30)
    assert check(Concept("gun", GUN, sifted.kept)) == []
    dropped = [r for r in sifted.rejected if r.reason == s.ONE_SIDED]
    assert dropped and all("'smoking' is in" in r.detail for r in dropped)
    assert sides(TWINS)[-1] in sides(list(sifted.kept))


def test_a_concept_side_stands_with_two_twins_and_no_more_whatever_else_it_stood_with():
    lone = [Candidate("a gun and a cat", f"a {noun}") for noun in NOUNS[1:]]
    twins = [Candidate("a gun and a cat", f"a {noun} and a cat") for noun in NOUNS[1:]]
    sifted = sift([*lone, *twins], GUN, 100)
    assert sorted(sides(list(sifted.kept))) == sorted(sides([*lone[:2], *twins[:2]]))
    assert sifted.counts() == {s.DUPLICATE: 2 * (len(NOUNS) - 3)}


def test_what_was_welcome_beside_its_twin_goes_with_it():
    twins = [
        Candidate(f"a smoking gun next to the {a} on grass", f"a big lamp next to the {a} on grass") for a in NOUNS
    ]
    others = [Candidate(t.concept, f"nothing but smoking with {i} cooks") for i, t in enumerate(twins[6:])]
    sifted = sift([*twins, *others], GUN, 100)
    with_twin = {p.concept for p in sifted.kept if not differs(p.concept, p.deconcept, GUN)}
    assert {p.concept for p in sifted.kept} == with_twin
    assert "its twin was dropped" in {r.detail for r in sifted.rejected if r.reason == s.OTHER_WORDING}
    assert check(Concept("gun", GUN, sifted.kept))[1:] == []


def test_more_than_half_of_the_deconcept_sides_are_not_shorter():
    removed = [Candidate(f"a naked {noun} on grass", f"a {noun} on grass") for noun in NOUNS]
    sifted = sift(removed, ("naked",), 100)
    assert sifted.counts() == {s.SHORTER: len(NOUNS)}
    replaced = [Candidate(f"a naked {noun} on sand", f"a tall {noun} on sand") for noun in NOUNS]
    assert len(sift([*removed, *replaced], ("naked",), 100).kept) == 2 * len(NOUNS)


def structure(rng: random.Random) -> tuple[list[str], int]:
    words = rng.sample(("on", "grass", "with", "cat", "red", "big", "sunset", "under", "old", ",", "and", "photo"), 9)
    return words, rng.randrange(10)


@pytest.mark.parametrize("seed", range(60))
def test_twins_against_edits_that_are_known(seed):
    """Nine words around a mention: what stands in its place is free, one other may change, none may go."""
    rng = random.Random(seed)
    words, at = structure(rng)
    concept = " ".join((*words[:at], "gun", *words[at:]))
    instead = rng.choice(("", "dog", "blue dog", "little blue dog"))
    other = " ".join((*words[:at], instead, *words[at:]))
    assert differs(concept, other, GUN) == ""
    assert differs(f"the {concept}", f"an {other}", GUN) == ""
    gone = [i for i in range(9) if i not in (at - 1, at)]  # apart from the mention's place
    i, j = rng.sample(gone, 2)
    lacking = [w for k, w in enumerate(words) if k != i]
    lost = " ".join((*lacking[: at - (i < at)], "dog", *lacking[at - (i < at) :]))
    assert differs(concept, lost, GUN) == f"'{words[i]}' is lost"
    changed = [("new" if k == i else w) for k, w in enumerate(words)]
    assert differs(concept, " ".join((*changed[:at], "dog", *changed[at:])), GUN) == ""
    changed = [("new" if k in (i, j) else w) for k, w in enumerate(words)]
    assert "2 of 9" in differs(concept, " ".join((*changed[:at], "dog", *changed[at:])), GUN)
    much = " ".join((*words[:at], "dog " * 7, *words[at:]))
    assert "2 are added" in differs(concept, much, GUN)


def test_faults_are_said_in_words():
    assert faults(Pair("a gun on grass", "a cat on grass"), GUN) == []
    assert faults(Pair("a gun and a cat", "a gun"), GUN) == [
        "the deconcept side holds a mention ('gun')",
        "the wording differs outside the mention ('and cat' is lost for 'gun')",
    ]


WORDS = ("and", "with", ",", "cat", "an", "a", "red", "gun", "rifle", "dog", "beside", "girl")  # words: ok


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(*[st.lists(st.sampled_from(WORDS), max_size=6)] * 2), max_size=60), st.integers(1, 40))
def test_each_candidate_is_kept_spare_or_rejected_and_what_is_kept_passes_the_check(rows, n):
    candidates = [Candidate(" ".join(a), " ".join(b)) for a, b in rows]
    candidates += [Candidate(" ".join(("gun", *a)), " ".join(("dog", *a))) for a, _ in rows]
    sifted = sift(candidates, GUN, n, ("rifle",))
    everywhere = [*sides(list(sifted.kept)), *sides(list(sifted.spare)), *sides(list(sifted.rejected))]
    assert Counter(everywhere) == Counter((c.concept, c.deconcept) for c in candidates)
    assert len(sifted.kept) <= n and (len(sifted.kept) == n or not sifted.spare)
    assert [p for p in check(Concept("gun", GUN, sifted.kept)) if not p.startswith("only")] == []
    for pair in sifted.kept:
        assert mentioned(pair.concept, GUN) and not mentioned(pair.deconcept, ("gun", "rifle"))
        assert not names_minors(pair.concept)
    # By brute force: no word outside the mention is on a tenth of the concept sides and on half as few of the others.
    for word in {w for pair in sifted.kept for w in pair.concept.split()} - {"gun"}:
        with_it = sum(word in p.concept.split() for p in sifted.kept)
        without = sum(word in p.deconcept.split() for p in sifted.kept)
        assert with_it < max(2, len(sifted.kept) / 10) or without >= with_it / 2


@pytest.mark.parametrize("name", [name for name in names() if name not in safety.names()])
def test_template_pairs_pass_untouched(name):
    asked = recipe(name)
    made = from_templates(name, asked.words, 100, 1, asked.kind, controls=0).pairs
    sifted = sift([Candidate(p.concept, p.deconcept, p.template) for p in made], asked.mentions, 100, asked.related)
    assert sifted.kept == made and sifted.rejected == ()


def test_pairs_of_one_wording_are_held_out_together():
    kept = sift([Candidate("A gun  on grass", "a cat on grass"), Candidate("a gun on grass", "a dog on grass")], GUN, 9)
    assert {p.template for p in kept.kept} == {"a {m} on grass"}


def test_recipes_of_the_papers_concepts():
    gun, nudity = recipe("gun"), recipe("nudity")
    assert gun.mentions == ("gun",) and "revolver" in gun.related
    assert recipe("paper-gun").mentions == ("gun", "sniper rifle", "pistol", "shotgun")
    assert "pistol" not in recipe("paper-gun").related
    assert set(nudity.words) < set(nudity.mentions) and nudity.kind == "attribute"
    assert recipe("paper-nudity").words == nudity.words
    assert nudity.manner in nudity.instruction and "adult" in nudity.instruction
    assert recipe("knife", ["knife", "penknife"]).related == ("knives", "jackknife", "weapon")
    assert recipe("weapons", ["halberd", "mace"], "object").words == ("halberd", "mace")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("gunn",), "did you mean gun"),
        (("safety-fraud",), "excise pairs make safety-fraud"),
        (("x", ["a"], "smell"), "unknown kind 'smell'"),
        (("x", ["a", " "]), "empty mention"),
        (("x", ["naked girl"], "attribute"), "'naked girl' names a minor"),
    ],
)
def test_what_no_recipe_is_made_for(call, message):
    with pytest.raises(ExciseError, match=message):
        recipe(*call)


@pytest.mark.parametrize("name", ["gun", "nudity", "violence", "knife", "apple", "ink", "paper-violence"])
def test_a_question_names_the_words_and_shows_what_would_be_taken(name):
    asked = recipe(name)
    system, text = question(asked, 7, 2, 5)
    assert system == asked.instruction and "Write 7 more pairs" in text
    assert all(word in text for word in (*asked.words, *asked.related, *STRUCTURES[asked.kind]))
    shown, broken = parse("\n".join(line for line in text.splitlines() if line.startswith("{")))
    assert len(shown) == 3 and not broken
    assert not sift(shown, asked.mentions, 9, asked.related).rejected
    assert question(asked, 7, 2, 5) == (system, text)
    assert len({question(asked, 7, number, seed)[1] for number in range(5) for seed in range(3)}) == 15
    assert "- a haiku" in question(asked, 7, structures=["a haiku"])[1]


def test_a_question_about_mentions_that_templates_cannot_use_has_no_example():
    text = question(recipe("little words", ["a", "an", "the", "there", "picture"]), 5)[1]
    assert "For example" not in text and "Write 5 pairs" in text
