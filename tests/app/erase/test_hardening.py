from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import excise
from excise import reference
from excise.app.erase import hardening
from excise.app.erase.hardening import COSTLY, LAST, Round, about_others, checked, harden, held_out
from excise.bench.canvas.families import cases, synonyms_of_others
from excise.bench.canvas.words import DESCRIBED, FOREIGN
from excise.cli import app
from excise.concepts import builtin
from excise.concepts.concept import mentioned
from excise.erasers import Eraser
from excise.errors import InvalidSetting
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.snce import fit
from excise.reference.world import OBJECTS, SYNONYMS

pytestmark = pytest.mark.usefixtures("one_bundled_pipe")


@pytest.fixture(scope="module")
def car() -> Eraser:
    return fit(reference.load(), builtin("car", 20), SNCEConfig(sae=str(reference.sae_folder()), permutations=10))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sets what each round lets through: (pictures with the concept of 10, its words), and
    which shares of controls and of prompts about other things it changes."""

    def script(rounds: Sequence[tuple[Any, ...]]) -> list[Round]:
        made: list[Round] = []

        def attack(pipe: Any, eraser: Eraser, concept: Any, words: int, steps: int, others: Any) -> Round:
            shown, leaks, *changed = rounds[len(made)]
            neurons = tuple(neuron for edit in eraser.edits for neuron in edit.neurons)
            made.append(Round(concept.mentions, neurons, leaks, 10, shown, leaks, *(changed or (0.0, 0.0))))
            return made[-1]

        monkeypatch.setattr(hardening, "_attack", attack)
        monkeypatch.setattr(hardening, "from_templates", _fewer)
        monkeypatch.setattr(hardening, "EVERYDAY", 40)
        return made

    return script


def _fewer(name: str, words: tuple[str, ...], kind: Any) -> Any:
    from excise.concepts import from_templates

    return from_templates(name, words, 20, kind=kind)


def test_words_that_get_through_become_mentions_with_a_neuron_each(car: Eraser, scripted: Any) -> None:
    scripted([(6, ("transported",)), (0, ())])
    hardened = harden(reference.load(), car)
    assert [one.mentions for one in hardened.rounds] == [("car",), ("car", "transported")]
    assert [len(one.neurons) for one in hardened.rounds] == [1, 2]
    pipe = reference.load()
    ids = pipe.tokenizer("a transported on grass", return_tensors="pt").input_ids
    plain = pipe.text_encoder(ids)[0]
    for eraser, acts in ((car, False), (hardened.eraser, True)):
        with eraser.attach(pipe):
            assert (not torch.equal(pipe.text_encoder(ids)[0], plain)) == acts
    assert hardened.best == 1 and hardened.why == "the gate was reached"
    assert hardened.eraser.mentions == ("car", "transported")
    kept = hardened.eraser.measured["hardening"]
    assert [one["shown"] for one in kept["rounds"]] == [6, 0] and kept["best"] == 1
    assert car.measured.get("hardening") is None
    with hardened.eraser.attach(reference.load()):
        pass


def test_a_round_that_wins_nothing_is_thrown_away(car: Eraser, scripted: Any) -> None:
    scripted([(6, ("transported",)), (6, ("wheels",)), (0, ())])
    hardened = harden(reference.load(), car)
    assert len(hardened.rounds) == 2 and hardened.best == 0 and hardened.why == "the last round won nothing"
    assert hardened.eraser.edits == car.edits and hardened.eraser.mentions == ("car",)
    scripted([(6, ())])
    assert (
        harden(reference.load(), car).why == "no neuron carries the words that were found and leaves other things alone"
    )
    scripted([(6, ("transported",))])
    assert harden(reference.load(), car, rounds=1).why == LAST
    scripted([(1, ("transported",))])
    assert harden(reference.load(), car, gate=0.1).why == "the gate was reached"


def test_a_round_that_changes_other_prompts_is_thrown_away(car: Eraser, scripted: Any) -> None:
    for changed in ((0.06, 0.05), (0.03, 0.08)):
        scripted([(6, ("transported",), 0.03, 0.05), (0, (), *changed)])
        hardened = harden(reference.load(), car)
        assert len(hardened.rounds) == 2 and hardened.best == 0 and hardened.why == COSTLY
        assert hardened.eraser.edits == car.edits
    scripted([(6, ("transported",), 0.03, 0.05), (0, (), 0.05, 0.07)])
    assert harden(reference.load(), car).best == 1


def test_a_words_edit_joins_only_if_it_leaves_prompts_about_other_things_alone(
    car: Eraser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardening, "EVERYDAY", 40)
    monkeypatch.setattr(hardening, "from_templates", _fewer)
    concept, config = checked(car)
    others = about_others(concept)
    # The neuron also fires with "sedan". Looked at are prompts at odd places; the calibration sees those at even ones.
    for acting, joins in ((0, True), (1, True), (2, False)):
        mixed = [*others]
        mixed[1 : 2 * acting : 2] = [f"{n} sedan on grass" for n in ("a", "the")][:acting]
        assert acting / (len(mixed) // 2) <= hardening.TOUCHED or not joins
        assert bool(hardening._edits(reference.load(), "car", "object", config, tuple(mixed))) == joins


def test_prompts_about_other_things_have_no_word_that_the_benchmark_tests_with() -> None:
    others = about_others(builtin("dog"))
    assert len(others) == len(set(others)) > 2 * (len(OBJECTS) - 1) + hardening.EVERYDAY // 2
    assert not mentioned(" ".join(others), ("dog", *(word for words in SYNONYMS.values() for word in words)))
    assert all(any(mentioned(text, (name,)) for text in others) for name in OBJECTS if name != "dog")


def test_words_of_the_benchmarks_prompts_are_never_tried() -> None:
    for concept in ("car", "gun", "ink"):
        words = held_out(concept)
        assert {name for name in OBJECTS if " " not in name} <= words
        named = (*synonyms_of_others(concept), *SYNONYMS.get(concept, ()), *FOREIGN[concept], *DESCRIBED[concept])
        assert {part for text in named for part in re.findall(r"\w+", text.lower())} <= words
    # Every word that names the concept in a family of attacks, other than its own name.
    for case in cases("car", 8):
        if case.family == "synonym":
            assert set(re.findall(r"\w+", case.prompt)) & held_out("car")
    assert not {"transported", "bionic", "creature"} & (held_out("car") | held_out("rocket") | held_out("dog"))


def test_what_cannot_be_hardened_is_refused_in_one_line(car: Eraser, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="'nudity' cannot be hardened: the judges know only gun"):
        checked(replace(car, concept="nudity"))
    with pytest.raises(InvalidSetting, match="only erasers by snce can be hardened, not by uce"):
        checked(replace(car, created={**car.created, "method": "uce"}))
    by_hand = {**car.created, "config": {**car.created["config"], "neurons": [3]}}
    with pytest.raises(InvalidSetting, match="neurons chosen by hand"):
        checked(replace(car, created=by_hand))
    odd = {**car.created, "config": {**car.created["config"], "colour": 3}}
    with pytest.raises(InvalidSetting, match="settings cannot be read"):
        checked(replace(car, created=odd))
    with pytest.raises(InvalidSetting, match="gate is 2; it is a share from 0 to 1"):
        excise.harden(car, reference.load(), gate=2)
    with pytest.raises(InvalidSetting, match="rounds must be at least 1"):
        excise.harden(car, reference.load(), rounds=0)
    replace(car, concept="nudity").save(tmp_path / "nudity")
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["harden", str(tmp_path / "nudity"), "--out", str(out)])
    assert done.exit_code == 2 and not out.exists()


def test_the_command_writes_the_best_eraser_and_says_whether_it_reached_the_gate(
    car: Eraser, scripted: Any, tmp_path: Path
) -> None:
    car.save(tmp_path / "car")
    for shown, code in ((0, 0), (2, 3)):
        scripted([(6, ("transported",)), (shown, ())])
        out = tmp_path / f"hardened-{shown}"
        done = CliRunner().invoke(app, ["harden", str(tmp_path / "car"), "--out", str(out)])
        assert done.exit_code == code, done.output
        assert "6 of 10" in done.output and "transported" in done.output
        assert Eraser.load(out).measured["hardening"]["rounds"][1]["shown"] == shown


def test_a_round_generates_pictures_from_the_nearest_words_that_are_not_held_out(
    car: Eraser, monkeypatch: pytest.MonkeyPatch
) -> None:
    from excise.bench.attacks import ring_a_bell, vocabulary

    # "transported" is one of 300 words, so that a search of seconds finds what the whole one does.
    pipe = reference.load()
    index = pipe.tokenizer("transported", add_special_tokens=False).input_ids
    every = ring_a_bell.vocabulary(pipe.tokenizer, ("car",))

    def fewer(tokenizer: Any, mentions: Any) -> Any:
        import torch

        return torch.tensor(sorted({*every[:299].tolist(), *index}))

    monkeypatch.setattr(vocabulary, "vocabulary", fewer)
    vocabulary._READ.clear()
    try:
        found = hardening._attack(pipe, car, builtin("car", 20), 3, 2, ("a dog on grass", "a picture of a car"))
    finally:
        vocabulary._READ.clear()
    assert found.words[0] == "transported" and len(found.words) == 3 and found.pictures == 6
    assert found.others == 0.5
    assert set(found.leaks) <= set(found.words) and (found.shown > 0) == bool(found.leaks)


@pytest.mark.slow
def test_the_whole_search_finds_transported_and_hardening_lets_fewer_words_through() -> None:
    pipe = reference.load()
    eraser = excise.erase(pipe, "car")
    hardened = harden(pipe, eraser, rounds=2)
    first = hardened.rounds[0]
    assert "transported" in first.leaks
    assert hardened.rounds[hardened.best].shown < first.shown
