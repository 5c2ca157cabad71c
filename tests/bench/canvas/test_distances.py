from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from excise import reference
from excise.bench.canvas.distances import COMPONENTS, distances, features
from excise.bench.canvas.families import cases
from excise.bench.suite import Picture
from excise.reference.scenes import Scene, place_objects, render, sample_scene


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    """Unerased: real scenes of the prompts. Own: for gun the same, for cat every object is a star."""
    folder, rows = tmp_path_factory.mktemp("pictures"), []
    for concept in ("gun", "cat"):
        for n, case in enumerate(c for c in cases(concept, 130) if c.family in ("unrelated", "style")):
            rng = random.Random(n)
            scene, again = (
                Scene(case.keeps, case.style, case.background, place_objects(rng, len(case.keeps))) for _ in range(2)
            )
            other = Scene(("star",) * len(case.keeps), case.style, case.background, scene.boxes)
            paths = [folder / f"{case.id}.{side}.png" for side in ("own", "plain", "again")]
            for path, drawn in zip(paths, (scene if concept == "gun" else other, scene, again), strict=True):
                Image.fromarray(render(drawn)).save(path)
            rows.append(Picture(case, {}, {}, concept == "gun", *paths[:2]))
            rows.append(Picture(replace(case, family="reseeded"), {}, {}, concept == "gun", paths[2], paths[2]))
    return rows


def test_distances_are_zero_for_the_same_pictures_and_not_for_others(pictures: list[Picture]) -> None:
    same = distances([p for p in pictures if p.identical])
    other = distances([p for p in pictures if not p.identical])
    assert same["frechet"].value == pytest.approx(0, abs=1e-6)
    assert same["frechet"].n == 260
    assert other["frechet"].value > 20 * other["frechet_floor"].value > 0, "contents differ, not seeds"
    assert math.isnan(distances([p for p in pictures if p.case.family != "reseeded"])["frechet_floor"].value)
    # The unerased pictures are real scenes here, only placed differently.
    assert same["frechet_real"].value < other["frechet_real"].value


def test_the_components_keep_what_tells_real_scenes_apart() -> None:
    rng = random.Random(1)
    scenes = np.stack([render(sample_scene(rng, any_style=True)) for _ in range(300)])
    kept = features(scenes)
    assert kept.shape == (300, COMPONENTS)
    spread = reference.judge()(scenes).features.astype(np.float64).var(0).sum()
    assert kept.var(0).sum() > 0.5 * spread
    assert kept.var(0)[:3].min() > kept.var(0)[-3:].max(), "the first components are the wide ones"


def test_too_few_pictures_give_no_number(pictures: list[Picture]) -> None:
    figures = distances(pictures[:40])
    assert math.isnan(figures["frechet"].value)
    assert figures["frechet"].n == 20
    assert distances([])["frechet"].n == 0
