from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from excise.app.pairs.generation import GENEROUS, PATIENCE, SIZE, generate, report_path, save
from excise.app.pairs.review import Review
from excise.chat import backend
from excise.concepts import Concept, Pair, builtin, check, load_pairs, save_pairs
from excise.concepts import sifting as s
from excise.concepts.generation import recipe
from excise.errors import ExciseError
from tests.chat_server import ChatServer

NOUNS = ("cat", "dog", "bus", "rose", "star", "house", "frog", "cake", "crown", "tree", "horse", "guitar", "rabbit")
PLACES = ("on grass", "at sunset", "on wood", "in the sky", "on the beach", "near a lake", "in fog")


def pair(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(NOUNS, 2)
    form = rng.choice(("a {} near a {o} {p}", "a {o} and a {} {p}", "a photo of a {} {p}", "{p}, a {}"))
    place = rng.choice(PLACES)
    return form.format("gun", o=a, p=place), form.format(b, o=a, p=place)


def writer(system: str, user: str) -> str:
    """Answer with ten good pairs, different for every question."""
    rng = random.Random(user)
    return "\n".join(json.dumps({"concept": c, "deconcept": d}) for c, d in (pair(rng) for _ in range(10)))


def careless(system: str, user: str) -> str:
    """Answer with four good pairs, five bad ones (one of them only from the second answer on), and chatter."""
    good = writer(system, user).splitlines()[:4]
    a, b = random.Random(user).sample(NOUNS, 2)
    bad = (
        '{"concept": "a gun on the moon", "deconcept": "a cat on the moon"}',
        "3. a gun near a cat | a gun near a dog",
        json.dumps({"concept": f"a gun and a {a} with a {b}", "deconcept": f"a {a} with a {b}"}),
        "a cannon on grass | a cat on grass",
        "a gun near a boy | a cat near a boy",
    )
    return "\n".join(("Of course!", *good, *bad, '{"concept": "a gun in th'))


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(writer) as chat:
        yield chat


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Callable[[ChatServer], Any]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return lambda chat: backend("openai", model="planted", base_url=chat.base_url, retries=0)


def balances(report: dict[str, Any]) -> bool:
    rejected = sum(report["rejected"].values())
    assert rejected == len(report["rejects"]) and report["unparsed"] == len(report["unparsed_lines"])
    return bool(report["parsed"] + report["templates"] == report["kept"] + report["spare"] + rejected)


def test_a_model_writes_a_hundred_pairs_that_pass_the_check(server, model, tmp_path):
    steps: list[int] = []
    made = generate(recipe("gun"), 100, model(server), tmp_path / "answers", steps.append)
    assert len(made.pairs) == 100 == sum(steps) and made.from_templates == 0 and made.notes == ()
    assert check(Concept("gun", ("gun",), made.pairs)) == [] == made.problems
    assert 10 <= made.cost.questions == len(server.asked) <= GENEROUS * 10
    assert server.asked[0]["messages"][0]["content"] == recipe("gun").instruction
    report = save(made, tmp_path / "gun.csv")
    assert load_pairs(tmp_path / "gun.csv") == made.pairs
    written = json.loads(report.read_text())
    assert written == made.report() and balances(written)
    assert written["tokens"] == written["tokens_spent"] > 0


def test_bad_answers_are_rejected_with_their_reasons_and_counted(server, model, tmp_path):
    server.answer = careless
    made = generate(recipe("gun"), 40, model(server), questions=6, jobs=2)
    report = made.report()
    assert report["questions"] == 6 and report["parsed"] == 6 * (4 + 5) and balances(report)
    assert report["unparsed"] == 6 * 2 and report["unparsed_lines"][:2] == ["Of course!", '{"concept": "a gun in th']
    counts = report["rejected"]
    for reason in (s.HOLDS_MENTION, s.NO_MENTION, s.NAMES_MINOR, s.OTHER_WORDING):
        assert counts[reason] == 6
    again = [r for r in made.rejected if r.concept == "a gun on the moon"]
    assert len(again) == 5 and {r.reason for r in again} == {s.DUPLICATE}
    assert report["notes"] == [f"the model wrote {len(made.pairs)} of 40 pairs in 6 questions"]


def test_the_budget_ends_the_asking_and_templates_fill_up(server, model):
    server.answer = lambda system, user: "a gun on grass | a cat on grass\na gun and a cat | a cat"
    short = generate(recipe("gun"), 25, model(server), jobs=3)
    assert len(server.asked) == short.cost.questions == GENEROUS * -(-25 // SIZE)
    assert [p.concept for p in short.pairs] == ["a gun on grass"]
    full = generate(recipe("gun"), 25, model(server), questions=2, fill=True)
    assert len(full.pairs) == 25 and full.from_templates == 24 and full.pairs[0] == short.pairs[0]
    assert full.problems == [] and balances(full.report())
    assert "1 of 25" in full.notes[0]


def test_what_was_answered_is_never_asked_again(server, model, tmp_path):
    server.dies_after = 4
    first = generate(recipe("gun"), 80, model(server), tmp_path, jobs=2)
    assert 0 < len(first.pairs) < 80 and "then stopped answering" in first.notes[0]
    assert len(first.failures) >= PATIENCE and first.cost.unanswered == len(first.failures)
    with ChatServer(writer) as whole:
        expected = generate(recipe("gun"), 80, model(whole), jobs=2)
    server.dies_after = None
    second = generate(recipe("gun"), 80, model(server), tmp_path, jobs=4)
    assert second.pairs == expected.pairs and second.cost.cached == 4
    assert len(server.asked) == second.cost.questions
    third = generate(recipe("gun"), 80, model(server), tmp_path)
    assert third.pairs == second.pairs and third.cost.spent == 0 < third.cost.tokens
    assert len(server.asked) == second.cost.questions
    other = generate(recipe("gun"), 80, model(server), tmp_path, seed=1)
    assert other.cost.cached == 0 and other.pairs != second.pairs


def test_a_refused_question_does_not_end_the_asking(server, model):
    refused = iter((True, False, True, False, True, False, False))

    def now_and_then(system: str, user: str) -> str:
        return " " if next(refused, False) else writer(system, user)

    server.answer = now_and_then
    made = generate(recipe("gun"), 20, model(server), jobs=1)
    assert len(made.pairs) == 20 and made.cost.unanswered >= 2
    assert "empty answer" in made.report()["failures"][0]


def test_without_a_model_all_pairs_are_templates():
    made = generate(recipe("gun"), 30, seed=0)
    assert made.pairs == builtin("gun", 30).pairs and made.from_templates == 30
    assert made.backend == "templates" and made.cost.questions == 0 and balances(made.report())


def test_templates_that_give_too_few_say_so(server, model):
    words = ["cat", "on grass", "on sand"]
    few = recipe("few", words)
    narrow = recipe("narrow", ["a", "the", "there", "picture"])
    assert len(generate(few, 5).pairs) == 5
    with pytest.raises(ExciseError, match=r"use narrower mentions|ask for fewer"):
        generate(narrow, 5)
    server.answer = lambda system, user: "the sun | one sun"
    made = generate(narrow, 5, model(server), questions=1, fill=True)
    assert [p.concept for p in made.pairs] == ["the sun"] and len(made.notes) == 2


def test_impossible_requests_and_names_are_refused(tmp_path):
    for options in ({"n": 0}, {"size": 0}, {"questions": 0}):
        with pytest.raises(ExciseError, match="at least one"):
            generate(recipe("gun"), **options)
    with pytest.raises(ExciseError, match=r"\.csv or \.jsonl"):
        report_path(tmp_path / "pairs.txt")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gun.csv"
    save_pairs(builtin("gun", 5).pairs, path)
    return path


def test_a_review_keeps_its_place_through_every_step(file):
    review = Review(file)
    first, second = review.pairs[:2]
    review.decide(True)
    review.decide(True, concept="a gun, edited")
    assert Review(file).decisions == review.decisions and Review(file).current == review.pairs[2]
    assert review.kept == (first, Pair("a gun, edited", second.deconcept, second.template)) and review.edited == 1
    assert Review(file).undo() and Review(file).undo() and not Review(file).undo()
    assert Review(file).current == first
    with pytest.raises(ExciseError, match="empty"):
        Review(file).decide(True, deconcept=" ")
    assert Review(file).decisions == []


def test_a_finished_review_is_the_pairs_and_no_more(file, tmp_path):
    review = Review(file)
    with pytest.raises(ExciseError, match="5 pairs are not decided"):
        review.finish(tmp_path / "out.csv")
    for keep in (True, False, True, False, True):
        review.decide(keep)
    with pytest.raises(ExciseError, match="every pair is decided"):
        review.decide(True)
    review.finish(tmp_path / "out.jsonl")
    assert load_pairs(tmp_path / "out.jsonl") == review.pairs[::2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gun.csv", "out.jsonl"]
    dropped = Review(file)
    for _ in dropped.pairs:
        dropped.decide(False)
    with pytest.raises(ExciseError, match="no pair was kept"):
        dropped.finish(tmp_path / "none.csv")


def test_a_full_disk_loses_no_decision(file, monkeypatch):
    import errno
    import os

    review = Review(file)
    review.decide(True)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExciseError, match="No space left"):
        review.decide(False)
    assert len(review.decisions) == 1 == len(Review(file).decisions)


def test_a_place_of_other_pairs_or_of_nothing_is_refused(file):
    review = Review(file)
    review.decide(True)
    good = review.place.read_text()
    save_pairs(builtin("gun", 6).pairs, file)
    with pytest.raises(ExciseError, match="changed since its review began"):
        Review(file)
    for broken in ("", "{}", "[]", good[:-3], good.replace('"keep"', '"sees"')):
        review.place.write_text(broken)
        with pytest.raises(ExciseError, match="is not a saved review"):
            Review(file)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_decisions_go_out_as_json_lines_and_come_back(file, tmp_path):
    review, sheet = Review(file), tmp_path / "sheet.jsonl"
    review.decide(False)
    review.export(sheet)
    exported = rows(sheet)
    assert [row["keep"] for row in exported] == [False, None, None, None, None]
    assert load_pairs(sheet) == review.pairs
    for row, keep in zip(exported, (True, "yes", 0, "N", 1), strict=True):
        row["keep"] = keep
    exported[1]["deconcept"] = "a lamp"
    sheet.write_text("".join(json.dumps(row) + "\n" for row in reversed(exported)))
    Review(file).apply(sheet)
    back = Review(file)
    assert back.current is None and back.edited == 1
    assert [p.concept for p in back.kept] == [review.pairs[i].concept for i in (0, 1, 4)]
    assert back.kept[1].deconcept == "a lamp" and back.kept[1].template == review.pairs[1].template


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[1].update(keep=None), "line 2: 'keep' is null"),
        (lambda r: r[1].update(keep="perhaps"), "'keep' is \"perhaps\"; write true or false"),
        (lambda r: r.pop(3), "lacks 1 of 5 rows, first row 4"),
        (lambda r: r.append(dict(r[0])), "line 6: row 1 appears twice"),
        (lambda r: r[0].update(row=9), "'row' is 9, not one of 1 to 5"),
        (lambda r: r[0].pop("row"), "'row' is None"),
        (lambda r: r[2].update(concept=" "), "line 3: a side is empty"),
    ],
)
def test_a_sheet_that_does_not_answer_decides_nothing(file, tmp_path, change, message):
    sheet = tmp_path / "sheet.jsonl"
    Review(file).export(sheet)
    content = [{**row, "keep": True} for row in rows(sheet)]
    change(content)
    sheet.write_text("".join(json.dumps(row) + "\n" for row in content))
    review = Review(file)
    with pytest.raises(ExciseError) as error:
        review.apply(sheet)
    assert message in str(error.value)
    assert review.decisions == [] == Review(file).decisions
