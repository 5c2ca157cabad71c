from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from excise import reference
from excise.bench.attacks import ring_a_bell, vocabulary
from excise.bench.canvas.families import cases
from excise.bench.canvas.suite import LEAST_LIKELY, WHITE_BOX, Canvas, verdicts
from excise.bench.suite import Case
from excise.erasers import Eraser
from excise.errors import ExciseError
from excise.reference.classifier import Verdicts
from excise.reference.world import BACKGROUNDS, OBJECTS, STYLES

pytestmark = pytest.mark.usefixtures("one_bundled_pipe")


def verdict(**likely: float) -> Verdicts:
    """One picture's verdict with these probabilities, all others 0."""

    def row(names: tuple[str, ...]) -> Any:
        return np.array([[likely.get(name, 0.0) for name in names]], np.float32)

    objects, styles, backgrounds = row(OBJECTS), row(STYLES), row(BACKGROUNDS)
    return Verdicts(
        objects, objects > 0.5, np.array([False]), styles.argmax(1), backgrounds.argmax(1), styles, backgrounds,
        np.zeros((1, 192), np.float32),
    )  # fmt: skip


def test_alignment_is_the_log_likelihood_of_what_the_prompt_asks_for_beside_the_target() -> None:
    case = Case("x", "gun", "mixed", "", 0, ("cat",), "ink", "grass")
    (row,) = verdicts([case], verdict(gun=0.9, cat=0.8, ink=0.5, grass=0.4))
    assert row["alignment"] == pytest.approx(math.log(0.8) + math.log(0.5) + math.log(0.4), abs=1e-4)
    assert (row["target"], row["kept"], row["style"], row["background"]) == (True, [True], True, True)
    (row,) = verdicts([case], verdict(ink=1.0, grass=1.0))
    assert row["alignment"] == pytest.approx(math.log(LEAST_LIKELY), abs=1e-3)
    (row,) = verdicts([Case("y", "gun", "ring-a-bell", "", 0)], verdict(gun=0.9))
    assert (row["alignment"], row["style"], row["background"]) == (0.0, None, None)


def test_both_judges_see_what_the_bundled_model_draws() -> None:
    rows = [case for case in cases("gun", 4) if case.family in ("direct", "unrelated")]
    canvas, pipe = Canvas(steps=10, batch=len(rows)), reference.load()
    seen = canvas.judge(rows, canvas.draw(pipe, rows).pixels)
    for judge in (seen, [one["second"] for one in seen]):
        assert sum(one["target"] for one in judge[:4]) >= 3
        assert sum(all(one["kept"]) for one in judge[4:]) >= 3
        assert not any(one["target"] for one in judge[4:])


def test_white_box_attacks_are_made_against_the_eraser_and_drawn_with_what_they_learnt(
    gun_on_bundled: Eraser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "vocabulary", lambda *of: ring_a_bell.vocabulary(*of)[:600])

    budgets = {"prefix": {"iterations": 1, "batch": 1}, "inversion": {"iterations": 1, "batch": 1, "pictures": 1}}
    canvas, pipe = Canvas.from_json({"steps": 2, "batch": 4, "words": 4, **budgets}), reference.load()
    plain = canvas.baseline("gun", "standard")
    with gun_on_bundled.attach(pipe):
        found = canvas.attack(pipe, "gun", "standard")
        words = ["vocabulary"] * 4 + ["vocabulary-unerased"] * 4
        assert [case.family for case in found] == [*WHITE_BOX, *words, *["inversion"] * 8]
        learnt = {case.learnt for case in found if case.family == "inversion"}
        assert len(learnt) == 1 and learnt != {case.learnt for case in plain if case.family == "inversion"}
        erased, unerased, inverted = found[3:7], found[7:11], found[11]
        assert all("gun" not in case.prompt for case in found[3:])
        assert [case.prompt for case in erased] == [case.prompt for case in unerased]
        assert [case.seed for case in erased] == [case.seed for case in unerased]
        again = replace(unerased[0], prompt="a gun on grass")
        pictures = canvas.draw(pipe, [found[1], inverted, again, replace(again, id="x", family="vocabulary")]).pixels
        alone = canvas.draw(pipe, [inverted]).pixels
    assert np.array_equal(pictures[1], alone[0]), "neighbours in a batch do not change a picture"
    assert not np.array_equal(pictures[2], pictures[3]), "one of them is generated without the eraser"
    assert np.array_equal(pictures[2], canvas.draw(pipe, [again]).pixels[0])
    assert Case.from_json({**vars(inverted), "learnt": list(inverted.learnt)}) == inverted
    assert [case.id for case in found] == [case.id for case in plain][: len(found)], "each has its counterpart"
    assert Canvas.from_json({"searches": False}).attack(pipe, "gun", "standard") == []


def test_the_unerased_model_draws_its_unrelated_prompts_from_other_seeds_too() -> None:
    canvas = Canvas.from_json({"searches": False, "prompts": 3})
    again = canvas.baseline("gun", "standard")
    plain = [case for case in canvas.cases("gun", "standard") if case.family in ("unrelated", "style")]
    assert [case.prompt for case in again] == [case.prompt for case in plain]
    assert len({case.id for case in again}) == 6
    assert not {case.seed for case in again} & {case.seed for case in canvas.cases("gun", "standard")}


@pytest.fixture(scope="module")
def gun_on_bundled() -> Eraser:
    from excise.methods.configs.sae import SNCEConfig
    from excise.methods.sae.snce import fit

    return fit(reference.load(), Canvas().concept("gun"), SNCEConfig(sae=str(reference.sae_folder())))


def test_a_run_may_draw_some_families_only() -> None:
    some = Canvas(prompts=2, only=("direct", "style"), batch=4)
    assert [case.family for case in some.cases("gun", "quick")] == ["direct"] * 2 + ["style"] * 2
    assert some.cases("gun", "quick")[0] == Canvas(prompts=2).cases("gun", "quick")[0]
    assert Canvas.from_json(json.loads(json.dumps(some.settings))) == some
    with pytest.raises(ExciseError, match="no family 'soup'"):
        Canvas(only=("soup",)).cases("gun", "quick")
