"""What a picture shows once the target is gone: checked on rendered scenes, whole, empty and wrecked."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from excise import reference
from excise.bench.canvas.families import cases
from excise.bench.canvas.metrics import of_concept, over_concepts
from excise.bench.canvas.remains import EMPTY, covered, remains
from excise.bench.canvas.suite import Canvas
from excise.bench.suite import Case, Picture
from excise.reference.captions import caption
from excise.reference.classifier import wreck
from excise.reference.scenes import backdrop, render, sample_scene
from excise.reference.training.vae import pixels
from excise.reference.world import BACKGROUNDS, STYLES

CASE = next(case for case in cases("gun", 1) if case.family == "direct")


def test_an_empty_scene_is_covered_by_nothing_and_an_object_covers_it() -> None:
    for ground, style in ((b, s) for b in BACKGROUNDS[::3] for s in STYLES[::3]):
        empty = backdrop(ground, style)
        assert covered(empty) == 0
        noisy = empty.astype(int) + np.random.default_rng(0).integers(-12, 13, empty.shape)
        assert covered(noisy.clip(0, 255).astype(np.uint8)) <= EMPTY, "as the autoencoder leaves it"
    patch = backdrop("grass", "flat").copy()
    patch[10:20, 10:20] = (200, 20, 20)
    assert covered(patch) == pytest.approx(100 / 4096)


def test_the_three_kinds_are_told_apart() -> None:
    rng = random.Random(3)
    scenes = [scene for scene in (sample_scene(rng, any_style=True) for _ in range(60)) if len(scene.objects) == 1][:20]
    others = [scene for scene in scenes if scene.objects != ("gun",)]
    wrecked = ((wreck(pixels(others), others, random.Random(0)) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    kinds = {
        "other": [render(scene) for scene in others],
        "empty": [render(replace(scene, objects=(), boxes=())) for scene in others],
        "unrecognisable": list(wrecked),
    }
    for wanted, shown in kinds.items():
        seen = Canvas().judge([CASE] * len(shown), np.stack(shown))
        told = [remains(bool(one["others"] or one["second"]["others"]), one["covered"]) for one in seen]
        assert told.count(wanted) >= len(told) - 1, (wanted, told)  # type: ignore[arg-type]


def picture(case: Case, target: bool, others: list[str], second: list[str], share: float) -> Picture:
    one: dict[str, Any] = {"target": target, "kept": [], "style": True, "background": True, "alignment": 0.0}
    seen = {**one, "others": others, "covered": share, "second": {**one, "others": second}}
    return Picture(case, seen, seen | {"target": True}, False, Path("a.png"), Path("b.png"))


def test_of_pictures_without_the_target_each_is_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Picture, "pixels", lambda self: np.zeros((64, 64, 3), np.uint8))
    monkeypatch.setattr(Picture, "unerased_pixels", lambda self: np.zeros((64, 64, 3), np.uint8))
    rows = [
        picture(CASE, True, ["cat"], [], 0.3),  # still there: it has no part
        picture(CASE, False, ["cat"], [], 0.3),
        picture(CASE, False, [], ["dog"], 0.001),  # one judge is enough
        picture(CASE, False, [], [], EMPTY),
        picture(CASE, False, [], [], 0.0051),
        picture(replace(CASE, family="paraphrase"), False, ["cat"], [], 0.3),
    ]
    shares = {name: of_concept(rows)[f"left_{name}"] for name in ("other", "empty", "unrecognisable")}
    assert {name: figure and (figure.value, figure.n) for name, figure in shares.items()} == {
        "other": (0.5, 4),
        "empty": (0.25, 4),
        "unrecognisable": (0.25, 4),
    }
    assert over_concepts({"gun": rows})["left_other"].value == 0.5
    styles = [replace(one, case=replace(CASE, concept="ink")) for one in rows]
    figure = of_concept(styles)["left_other"]
    assert figure is not None and figure.n == 0, "a style that is gone leaves its object, which CRA counts"


def test_what_was_judged_before_has_no_such_figure() -> None:
    row = picture(CASE, False, [], [], 0.0)
    del row.seen["covered"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Picture, "pixels", lambda self: np.zeros((64, 64, 3), np.uint8))
        patch.setattr(Picture, "unerased_pixels", lambda self: np.zeros((64, 64, 3), np.uint8))
        figure = of_concept([row])["left_empty"]
    assert figure is not None and figure.n == 0


def test_the_bundled_models_own_empty_scenes_are_empty() -> None:
    rng = random.Random(0)
    prompts = [caption(rng, (), style, ground) for style, ground in (("flat", "grass"), ("ink", "sand"))]
    drawn = reference.generate(reference.load(), prompts, [0, 1], batch_size=2)
    assert [covered(one) <= EMPTY for one in drawn] == [True, True]
