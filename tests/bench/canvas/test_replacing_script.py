"""Fréchet distances of benchmarks/figures/replacing.py, on real scenes instead of pictures."""

from __future__ import annotations

import copy
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from benchmarks.figures import replacing
from benchmarks.figures.replacing import COMPONENTS, INSTEAD, WITHOUT, real_scenes, traits
from excise.bench.canvas.families import cases
from excise.bench.frechet import LEAST
from excise.bench.suite import Case
from excise.reference.scenes import render
from tests.test_house import ROOT

N = 12
NAMES = ("dog", "bus")
WORDS = {"dog": "apple", "bus": "frog"}


def asked(name: str) -> list[Case]:
    return [case for case in cases(name, N) if case.family in replacing.FAMILIES]


def test_real_scenes_are_of_other_prompts_and_without_the_concept() -> None:
    for name, word in WORDS.items():
        own = asked(name)
        found, prompts = real_scenes(name, N, own, word), cases(name, 3 * N)
        assert found == real_scenes(name, N, own, word)
        assert set(found) == {WITHOUT, INSTEAD, f"{WITHOUT} again", f"{INSTEAD} again"}
        for which, first in (("", N), (" again", 2 * N)):
            without, instead = found[WITHOUT + which], found[INSTEAD + which]
            assert len(without) == len(instead) == len(own)
            for case, bare, full in zip(own, without, instead, strict=True):
                (of,) = [one for one in prompts if (one.family, one.seed) == (case.family, first + case.seed)]
                assert (bare.objects, bare.style, bare.background) == (of.keeps, of.style, of.background)
                assert Counter(full.objects) == Counter((word, *of.keeps)) and name not in full.objects
                assert set(bare.boxes) <= set(full.boxes) and len(bare.boxes) == len(of.keeps)
                places = dict(zip(full.boxes, full.objects, strict=True))
                assert [places[box] for box in bare.boxes] == list(bare.objects), "it stands where it would next to it"
        assert found[WITHOUT] != found[f"{WITHOUT} again"]


def measured(name: str) -> dict[str, Any]:
    """What the script saves of a concept, had the rows drawn real scenes: the default ones that still show it."""
    own = asked(name)
    scenes = real_scenes(name, N, own, WORDS[name])
    seen = {side: traits([render(scene) for scene in some]) for side, some in scenes.items()}
    still = traits([render(scene) for scene in real_scenes(name, N, own, name)[f"{INSTEAD} again"]])
    rows = {label: seen[f"{WITHOUT if label.startswith('nothing') else INSTEAD} again"] for label in replacing.ROWS}
    return {"scenes": {**seen, "unerased": still}, "rows": {**rows, "default": still}}


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs/results/replacing.json").read_text(encoding="utf-8"))
    found["concepts"] = {name: found["concepts"][name] for name in NAMES}
    for name, own in found["concepts"].items():
        made = measured(name)
        own["scenes"] = made["scenes"]
        for label, row in made["rows"].items():
            own[label]["traits"] = row
    return found


def test_what_is_real_is_as_near_as_real_scenes_are_and_what_shows_the_concept_is_not(results: dict[str, Any]) -> None:
    distances = replacing.to_real_scenes(results["concepts"])
    assert int(distances["n"]) == sum(map(len, map(asked, NAMES))) >= LEAST * COMPONENTS
    assert distances["nothing"] == distances[WITHOUT] and distances[replacing.WORD] == distances[INSTEAD]
    assert distances["default"] == distances["unerased"]
    assert float(distances["default"]) > 3 * float(distances[WITHOUT]) > 0


def test_the_page_has_the_column_where_it_was_measured(results: dict[str, Any]) -> None:
    page, distances = replacing.page(results), replacing.to_real_scenes(results["concepts"])
    rows = [line for line in page.splitlines() if line.startswith(("| default |", "| nothing |"))]
    assert [row.split(" | ")[-1] for row in rows] == [f"{distances[row]} |" for row in ("default", "nothing")]
    assert f"{distances['n']} pictures that count to as many real scenes" in page
    assert f"apart: {distances[WITHOUT]} without the concept" in page
    assert max(len(line) for line in page.splitlines() if line.startswith("Fréchet")) <= 120
    older = copy.deepcopy(results)
    del older["concepts"]["bus"]["scenes"]
    assert "Fréchet" not in replacing.page(older), "a concept was measured before"


def test_too_few_pictures_give_no_column(results: dict[str, Any]) -> None:
    few = copy.deepcopy(results["concepts"])
    sides = [few["bus"][row]["traits"] for row in replacing.ROWS] + list(few["bus"]["scenes"].values())
    left = LEAST * COMPONENTS - len(few["dog"]["scenes"][WITHOUT])
    for side in sides:
        del side[left:]
    assert replacing.to_real_scenes(few)["n"] == str(LEAST * COMPONENTS)
    for side in sides:
        del side[left - 1 :]
    assert replacing.to_real_scenes(few) == {}


def test_traits_are_of_each_picture() -> None:
    scenes = [render(scene) for scene in real_scenes("dog", N, asked("dog")[:2], "apple")[INSTEAD]]
    made = traits(scenes)
    assert np.array(made).shape == (2, COMPONENTS) and made != traits(scenes[::-1])
    assert traits([]) == []
