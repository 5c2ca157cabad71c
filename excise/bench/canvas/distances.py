"""Fréchet distances on Canvas: how far erasing moved the distribution of unrelated pictures.

Features are the judge's, projected onto the first principal components of real scenes, so that a few hundred pictures
are enough for a covariance. The numbers compare methods within Canvas only; they are not FID.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from excise import reference
from excise.bench.canvas.families import UNTOUCHED
from excise.bench.frechet import Features, frechet
from excise.bench.pictures import Pixels
from excise.bench.suite import Picture
from excise.errors import ExciseError
from excise.reference.scenes import Scene, place_objects, render, sample_scene
from excise.statistics import Estimate

COMPONENTS = 24
SCENES = 1500
"""Real scenes to compute the components from."""
NAMES = ("frechet", "frechet_floor", "frechet_real")


def distances(pictures: Sequence[Picture]) -> dict[str, Estimate]:
    """Compute Fréchet distances between unrelated pictures and three references.

    Returns:
        `frechet`: to the unerased model's pictures of the same prompts and seeds.
        `frechet_floor`: between the unerased model's pictures and its own from other seeds, the smallest distance that
        distinguishes methods.
        `frechet_real`: to real scenes of the same objects, styles and backgrounds.
        None has an interval, and values are NaN if there are too few pictures.
    """
    unrelated = [p for p in pictures if p.case.family in UNTOUCHED]
    n = len(unrelated)
    if not n:
        return dict.fromkeys(NAMES, Estimate(np.nan, np.nan, np.nan, 0))
    reseeded = [p.unerased_pixels() for p in pictures if p.case.family == "reseeded"]
    erased, unerased = (features(np.stack(some)) for some in _both(unrelated))
    real = features(np.stack([render(_scene(p, random.Random(k))) for k, p in enumerate(unrelated)]))
    others = features(np.stack(reseeded)) if reseeded else unerased[:0]
    sides = {"frechet": (erased, unerased), "frechet_floor": (unerased, others), "frechet_real": (erased, real)}
    return {name: Estimate(_distance(*side), np.nan, np.nan, min(map(len, side))) for name, side in sides.items()}


def features(pictures: Pixels) -> Features:
    """Compute features `[n, COMPONENTS]` of pictures `[n, 64, 64, 3]`."""
    mean, components = _projection()
    seen: Features = reference.judge()(pictures).features
    return np.asarray((seen - mean) @ components)


@cache
def _projection() -> tuple[Any, Any]:
    """Return the mean `[192]` and first components `[192, COMPONENTS]` of the judge's features of real scenes."""
    rng = random.Random("canvas components")
    scenes = np.stack([render(sample_scene(rng, any_style=True)) for _ in range(SCENES)])
    seen = reference.judge()(scenes).features.astype(np.float64)
    mean = seen.mean(0)
    _, _, rows = np.linalg.svd(seen - mean, full_matrices=False)
    return mean, rows[:COMPONENTS].T


def _both(pictures: Sequence[Picture]) -> tuple[list[Pixels], list[Pixels]]:
    return [p.pixels() for p in pictures], [p.unerased_pixels() for p in pictures]


def _scene(p: Picture, rng: random.Random) -> Scene:
    return Scene(p.case.keeps, p.case.style, p.case.background, place_objects(rng, len(p.case.keeps)))


def _distance(one: Features, two: Features) -> float:
    try:
        return frechet(one, two)
    except ExciseError:
        return float("nan")
