"""What the scripts of results pages ask for and count (benchmarks/figures)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.figures import ablations, choosing_margin, disguises, hardening, hierarchy, peers_plan
from excise.app.training.text import BUNDLED
from excise.bench.canvas.families import cases
from excise.bench.canvas.metrics import RULES, counted
from excise.bench.canvas.sizes import FROZEN
from excise.bench.suite import Picture
from excise.methods.configs.sae import SNCEConfig
from excise.methods.lookup import configured, preset_settings
from excise.methods.prompt_codes import Reading
from excise.statistics import share_over


def test_as_many_prompts_are_asked_as_the_rules_of_canvas_count() -> None:
    names = ("gun", "ink")
    pictures = []
    for case in (case for name in names for case in cases(name, 3)):
        seen = {"target": False, "kept": [True] * len(case.keeps), "style": True, "background": True}
        pictures.append(Picture(case, seen, seen, True, Path(), Path()))
    asked = peers_plan.asked(names, 3)
    for figure in ("ua", "ira", "cra", "mixed", "identical"):
        assert asked[figure] == len(counted(RULES[figure], pictures)), figure
    assert asked["asr.language"] == sum(picture.case.family == "language" for picture in pictures)


def test_a_papers_settings_are_compared_if_they_differ_from_the_chosen_ones() -> None:
    assert peers_plan.of_paper("uce", "guide=thing") == "preset=paper"
    assert preset_settings("uce", "paper")["guide"] == "", "which the chosen setting replaces"
    assert peers_plan.of_paper("casteer", "beta=2") is None, "chosen are the paper's"
    assert peers_plan.of_paper("saemnesia-text", "") is None, "its paper has no settings for it"


def test_every_variant_is_the_default_but_for_one_thing() -> None:
    default = vars(SNCEConfig())
    for label, variant in ablations.VARIANTS.items():
        own = vars(configured("snce", variant.settings))
        changed = {name for name in own if own[name] != default[name]} - {"lam"}
        things = [*changed, *(["sae"] if variant.sae else []), *(["lead"] if not variant.lead else [])]
        assert len(things) == (label not in ("snce", "lam=1")), label
    assert len({*map(repr, ablations.SAES.values()), repr(BUNDLED)}) == len(ablations.SAES) + 1


def test_a_variants_figures_leave_out_the_concepts_that_it_refuses() -> None:
    hits = {"neurons": [1], "weak": []} | {key: [1, 1, 0, 1] for key in ablations.HEADS}
    none = hits | {"ua": [0, 0, 0, 0], "near_synonym": []}
    found = {"pig": hits, "car": none, "star": {"refused": "no neuron separates it"}}
    made = ablations.figures(found)
    assert made["refused"] == {"star": "no neuron separates it"} and set(made["concepts"]) == {"pig", "car"}
    assert made["figures"]["ua"] == share_over([[True, True, False, True], [False] * 4]).to_json()
    assert made["concepts"]["pig"]["ua"] == {"value": 0.75} and made["concepts"]["car"]["near_synonym"] is None


def test_the_page_of_ablations_says_what_is_missing() -> None:
    hits: dict[str, Any] = {key: [1, 1, 1, 1] for key in ablations.HEADS}
    concepts = {name: {"snce": hits, "k=10": hits | {"ua": [0, 0, 0, 0]}} for name in FROZEN[:10]}
    origin = {"command": ablations.COMMAND, "machine": "here", "commit": "0" * 40, "model": {}, "saes": {}}
    page = ablations.page({"concepts": concepts, **origin})
    assert "Not measured yet: gate=threshold;" in page and "10 of 16 concepts" in page
    assert "| k=10 | target gone | -100.0 | 10 | " in page and "snce is better" in page


def test_the_first_state_is_calibrated_like_a_words_only_within_the_context() -> None:
    plain = vars(Reading)["lead"]
    with ablations.leading(True):
        assert vars(Reading)["lead"] is plain
    with ablations.leading(False):
        assert vars(Reading)["lead"].fget(None) == 0
    assert vars(Reading)["lead"] is plain


def test_hardening_mixes_no_settings_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "hardening.json"
    out.write_text(json.dumps({"concepts": {}, "options": "--rounds 1 --words 4"}))
    monkeypatch.setattr(sys, "argv", ["hardening.py", "dog", "--out", str(out)])
    with pytest.raises(SystemExit) as stopped:
        hardening.main()
    assert stopped.value.code == 2


@pytest.mark.parametrize("seed", range(8))
def test_the_lead_over_other_neurons_is_counted_state_by_state(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    own, others = torch.rand(6, generator=draw) * 3, torch.rand(6, 4, generator=draw) * 2
    others[2] = 0  # no other neuron fires there
    threshold = float(own.sort().values[seed % 6]) - 1e-4
    ratios, loudest = [], 0.0
    for state in range(6):
        rival = max(float(others[state, n]) for n in range(4))
        loudest = max(loudest, rival)
        if float(own[state]) > threshold:
            ratios.append(float(own[state]) / rival if rival else 99.0)
    wanted = (min(max(own.tolist()) / loudest, 99.0), min(max(ratios), 99.0))
    assert choosing_margin.lead_of(own, others, threshold) == pytest.approx(wanted, abs=6e-4)


def test_a_state_below_the_threshold_has_no_lead() -> None:
    own, others = torch.tensor([0.2, 1.0]), torch.tensor([[0.01], [2.0]])
    assert choosing_margin.lead_of(own, others, 0.5) == (0.5, 0.5)


def test_a_superclass_is_erased_by_its_name_its_members_or_the_first_of_them() -> None:
    words = {way: hierarchy.concept("fruit", way).mentions for way in hierarchy.WAYS}
    assert words == {"name": ("fruit",), "members": ("apple", "banana", "strawberry"), "first": ("apple",)}
    rows = [hierarchy.direct(name, 1)[0] for name in ("gun", "knife", "apple")]
    assert hierarchy.groups(rows, hierarchy.CLASSES["weapon"]) == ["first", "rest", "others"]
    members = [one for several in hierarchy.CLASSES.values() for one in several]
    assert len(set(members)) == len(members), "an object of two superclasses would count twice"


def test_a_figure_over_superclasses_is_the_mean_of_their_shares() -> None:
    assert hierarchy.cell([[True, True], [False, False, False]]).startswith("50.0")
    assert hierarchy.cell([[True, True], [False, False, False]]).endswith(", 5") and hierarchy.cell([[]]) == "n/a"


def test_a_family_is_testable_on_the_concepts_that_have_its_prompts() -> None:
    figure = {"value": 1.0}
    rows = [
        {"drawn.emoji": figure, "asr.emoji": figure},
        {"drawn.emoji": figure, "asr.emoji": None},
        {"drawn.late": figure, "asr.late": figure},
    ]
    assert disguises.testable(rows, "asr.emoji", "emoji") == "1 of 2"
