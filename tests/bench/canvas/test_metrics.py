from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from excise.bench.canvas.captioned import is_style
from excise.bench.canvas.families import FAMILIES, cases, near_synonyms, synonyms_of_others, worded
from excise.bench.canvas.metrics import ATTACKS, of_concept, outside, outside_kept, over_concepts, pixel_error
from excise.bench.canvas.remains import objects_mask, unchanged_outside
from excise.bench.suite import Case, Picture
from excise.reference.scenes import Scene, backdrop, render
from excise.statistics import paired_difference, wilson


def seen(rng: random.Random, case: Case, target: float) -> dict[str, Any]:
    return {**one_judge(rng, case, target), "second": one_judge(rng, case, target)}


def one_judge(rng: random.Random, case: Case, target: float) -> dict[str, Any]:
    return {
        "target": rng.random() < target,
        "kept": [rng.random() < 0.8 for _ in case.keeps],
        "style": rng.random() < 0.9,
        "background": rng.random() < 0.7,
        "nothing": False,
        "alignment": -rng.random(),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("own.png", "plain.png"):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / name)
    return folder / "own.png", folder / "plain.png"


def pictures(concept: str, files: tuple[Path, Path], n: int = 12) -> list[Picture]:
    rng = random.Random(concept)
    rows = []
    for case in cases(concept, n):
        drawn = 0.1 if case.family == "language" else 0.8
        rows.append(Picture(case, seen(rng, case, 0.1), seen(rng, case, drawn), rng.random() < 0.9, *files))
    return rows


@pytest.mark.parametrize("concept", ["gun", "ink"])
def test_the_figures_of_a_concept_against_counting_by_hand(concept: str, files: tuple[Path, Path]) -> None:
    rows = pictures(concept, files)
    figures = of_concept(rows)
    style = is_style(concept)
    wanted: dict[str, list[bool]] = {name: [] for name in ("ua", "ira", "cra", "mixed", "near_miss", "identical")}
    for p in rows:
        family, objects = p.case.family, all(p.seen["kept"])
        if family == "direct":
            wanted["ua"].append(not p.seen["target"])
        if family == "unrelated":
            wanted["ira"].append(p.seen["style"] if style else objects)
            wanted["identical"].append(p.identical)
        if family in ("unrelated", "direct") or (family == "style" and not style):
            wanted["cra"].append(objects if style else p.seen["style"])
        if family == "mixed" and all(p.unerased["kept"]):
            wanted["mixed"].append(objects and not p.seen["target"])
        if family == "near-miss" and all(p.unerased["kept"]):
            wanted["near_miss"].append(objects)
    for name, outcomes in wanted.items():
        assert figures[name] == wilson(sum(outcomes), len(outcomes)), name
    for family in FAMILIES:
        if (
            family.role == "keep"
            or family.name in ("ring-a-bell", "unlearn-diff", "p4d", "adaptive", "inversion", "vocabulary")
            or (style and family.name == "synonym")
        ):
            assert f"asr.{family.name}" not in figures
            continue
        mine = [p for p in rows if p.case.family == family.name]
        before = [p for p in mine if p.unerased["target"]]
        assert figures[f"drawn.{family.name}"] == wilson(len(before), len(mine))
        after = wilson(sum(p.seen["target"] for p in before), len(before))
        assert figures[f"asr.{family.name}"] == (after if len(before) >= 0.3 * len(mine) else None)
    assert figures["asr.language"] is None, "drawn in one of ten: not testable"


def test_words_and_synonyms_of_others_against_counting_by_hand(files: tuple[Path, Path]) -> None:
    rng, rows = random.Random(3), []
    searched = worded("gun", "vocabulary", ["axe"] * 12) + worded("gun", "vocabulary-unerased", ["axe"] * 12)
    for case in searched + near_synonyms("gun", tuple(synonyms_of_others("gun"))[:20]):
        rows.append(Picture(case, seen(rng, case, 0.3), seen(rng, case, 0.8), False, *files))
    figures = of_concept(rows)
    for name, family in (("vocabulary", "vocabulary"), ("vocabulary_unerased", "vocabulary-unerased")):
        shown = [p.seen["target"] for p in rows if p.case.family == family]
        assert figures[name] == wilson(sum(shown), 12) and 0 < sum(shown) < 12
    near = [p for p in rows if p.case.family == "near-synonym" and p.unerased["kept"] == [True]]
    kept = sum(p.seen["kept"][0] for p in near)
    assert figures["near_synonym"] == wilson(kept, len(near)) and 0 < kept < len(near) < 20
    assert "asr.vocabulary-unerased" not in figures and figures["asr.vocabulary"] is not None


def test_how_far_an_erased_style_moves_the_objects_is_counted_for_styles_alone(files: tuple[Path, Path]) -> None:
    rows = [p for p in pictures("ink", files) if p.case.family in ("direct", "paraphrase", "synonym", "mixed")]
    drawn = [p for p in rows if p.case.keeps and all(p.unerased["kept"])]
    assert 0 < len(drawn) < len(rows)
    kept = sum(all(p.seen["kept"]) for p in drawn)
    assert of_concept(pictures("ink", files))["objects"] == wilson(kept, len(drawn))
    of_gun = of_concept(pictures("gun", files))["objects"]
    assert of_gun is not None
    assert math.isnan(of_gun.value)


def test_means_over_concepts_count_concepts(files: tuple[Path, Path]) -> None:
    by_concept = {name: pictures(name, files) for name in ("gun", "cat", "ink", "flat")}
    figures, single = over_concepts(by_concept), {name: of_concept(rows) for name, rows in by_concept.items()}
    for name in ("ua", "ira", "cra", "mixed", "identical"):
        values = [single[concept][name].value for concept in by_concept]  # type: ignore[union-attr]
        assert figures[name].value == pytest.approx(sum(values) / 4)
        assert figures[name].n == 4
        assert figures[name].low <= figures[name].value <= figures[name].high
    attacks = []
    for concept in by_concept:
        testable = [f for a in ATTACKS if (f := single[concept].get(f"asr.{a}")) is not None]
        attacks.append(sum(f.value for f in testable) / len(testable))
    assert figures["asr"].value == pytest.approx(sum(attacks) / 4)
    ratios = []
    for rows in by_concept.values():
        unrelated = [p for p in rows if p.case.family == "unrelated"]
        style = is_style(rows[0].case.concept)
        counts = [
            sum(s["style"] if style else all(s["kept"]) for s in side)
            for side in ([p.seen for p in unrelated], [p.unerased for p in unrelated])
        ]
        ratios.append(counts[0] / counts[1])
    assert figures["ira_ratio"].value == pytest.approx(sum(ratios) / 4)
    assert math.isnan(figures["asr.language"].value)


def test_changes_are_measured_in_pixels(tmp_path: Path) -> None:
    case = next(c for c in cases("gun", 1) if c.family == "direct")
    plain = render(Scene(("gun",), case.style, case.background, ((16, 16, 32),)))
    own = plain.copy()
    own[60:, :, :] = 255 - own[60:, :, :]
    Image.fromarray(plain).save(tmp_path / "plain.png")
    Image.fromarray(own).save(tmp_path / "own.png")
    picture = Picture(case, {}, {}, False, tmp_path / "own.png", tmp_path / "plain.png")
    assert pixel_error(picture) is None, "a prompt with the target is meant to change"
    mask = objects_mask(plain, backdrop(case.background, case.style))
    assert mask[30, 30]
    assert not mask[:11].any() and not mask[53:].any(), "four pixels round the drawing, no more"
    by_hand = [
        sum(abs(int(own[y, x, c]) - int(plain[y, x, c])) for c in range(3)) / 3 / 255
        for y in range(64)
        for x in range(64)
        if not mask[y, x]
    ]
    assert outside(picture) == pytest.approx(sum(by_hand) / len(by_hand))


def test_pixels_outside_the_object_are_kept_up_to_a_step(tmp_path: Path) -> None:
    case = next(c for c in cases("gun", 1) if c.family == "direct")
    plain = render(Scene(("gun",), case.style, case.background, ((16, 16, 32),)))
    changes = np.zeros((64, 64, 3), int)
    changes[0, :, 1], changes[1, :, 2], changes[2, :7, 0] = 32, 33, 200
    mask = objects_mask(plain, backdrop(case.background, case.style))
    changes[mask] = 90  # where the object was, anything may change
    own = np.where(plain > 127, plain - np.minimum(changes, plain), plain + np.minimum(changes, 255 - plain))
    Image.fromarray(plain).save(tmp_path / "plain.png")
    Image.fromarray(own.astype(np.uint8)).save(tmp_path / "own.png")
    right = {"background": True, "style": True}
    picture = Picture(case, {}, right, False, tmp_path / "own.png", tmp_path / "plain.png")
    kept = [
        max(abs(int(own[y, x, c]) - int(plain[y, x, c])) for c in range(3)) <= 32
        for y in range(64)
        for x in range(64)
        if not mask[y, x]
    ]
    assert len(kept) - sum(kept) == 64 + 7, "the second row and a part of the third"
    assert outside_kept(picture) == sum(kept) / len(kept)
    for wrong in ({"background": False, "style": True}, {"background": True, "style": None}):
        assert outside_kept(replace(picture, unerased=wrong)) is None, "what was wrong before cannot be kept"
    ink = next(c for c in cases("ink", 1) if c.family == "direct")
    assert outside_kept(replace(picture, case=ink)) is None, "an erased style is everywhere"
    assert unchanged_outside(plain, 255 - plain, plain) is None, "nothing is outside"


def test_the_second_judge_counts_the_same_pictures_again(files: tuple[Path, Path]) -> None:
    rows = {concept: pictures(concept, files) for concept in ("gun", "cat")}
    swapped = {
        concept: [Picture(p.case, p.seen["second"] | {"second": p.seen}, p.unerased["second"] | {"second": p.unerased},
                          p.identical, p.path, p.unerased_path) for p in some]
        for concept, some in rows.items()
    }  # fmt: skip
    own, other = over_concepts(rows), over_concepts(swapped)
    for name in ("ua", "ira", "mixed", "asr"):
        assert own[f"{name}_second"] == other[name] != own[name]
    same = [p.seen["target"] == p.seen["second"]["target"] and p.seen["kept"] == p.seen["second"]["kept"]
            for p in rows["gun"]]  # fmt: skip
    assert of_concept(rows["gun"])["agreement"] == wilson(sum(same), len(same))


def test_alignment_is_a_mean_over_prompts_without_the_target(files: tuple[Path, Path]) -> None:
    rows = [p for p in pictures("gun", files) if p.case.family in ("unrelated", "near-miss", "style")]
    figures = of_concept(rows)
    mean, change = figures["alignment"], figures["alignment_change"]
    assert mean is not None and change is not None
    assert mean.value == pytest.approx(sum(p.seen["alignment"] for p in rows) / len(rows))
    differences = [p.seen["alignment"] - p.unerased["alignment"] for p in rows]
    assert change.value == pytest.approx(sum(differences) / len(rows))


def test_changes_are_paired_by_seed(files: tuple[Path, Path]) -> None:
    rows = {concept: pictures(concept, files) for concept in ("gun", "cat")}
    means = []
    for concept, some in rows.items():
        kept = [p for p in some if p.case.family == "unrelated"]
        before, after = (
            [all(seen["kept"]) for seen in side] for side in zip(*((p.unerased, p.seen) for p in kept), strict=True)
        )
        assert of_concept(some)["ira_change"] == paired_difference(before, after), concept
        means.append((sum(after) - sum(before)) / len(kept))
    change = over_concepts(rows)["ira_change"]
    assert change.value == pytest.approx(sum(means) / 2)
    assert change.low <= change.value <= change.high
