"""The probe `leakage`: its prompts, what it measures, and that it tells a leak from none in drawn pictures."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.figures import probes
from excise import reference
from excise.bench.canvas.sizes import STANDARD
from excise.bench.latents import decoded, encoded
from excise.bench.probes.leakage import (
    APART,
    LEAK,
    OWN,
    apart,
    can_show,
    colours,
    distinct,
    leaked,
    partner_is_left,
    tinted,
    written,
)
from excise.bench.probes.probes import PROBES, Work
from excise.bench.probes.suite import Probes
from excise.bench.suite import Case, Picture
from excise.drawn import Drawn, Pixels
from excise.reference.scenes import PAIRED_SIZE, SIZE, Scene, backdrop, render, sprite
from excise.reference.world import HELD_OUT_PAIRS, HELD_OUT_STYLES, OBJECTS
from excise.statistics import share
from tests.test_house import ROOT

CONCEPTS = [name for name in STANDARD if name in OBJECTS]


def boxes(case: Case) -> dict[str, tuple[int, int, int]]:
    """The box of the target and of the partner."""
    left, right = ((side, 16, PAIRED_SIZE) for side in (0, SIZE // 2))
    return {case.keeps[0]: left, case.concept: right} if case.seed % 2 else {case.concept: left, case.keeps[0]: right}


def scene(case: Case, *things: str) -> Pixels:
    """A real scene of the case with these of its objects."""
    return render(Scene(things, case.style, case.background, tuple(boxes(case)[thing] for thing in things)))


def recoloured(case: Case) -> Pixels:
    """The partner alone in the target's colours: its pixels in order of lightness take those that only the target has,
    in the same order."""
    (partner,) = case.keeps
    ground = backdrop(case.background, case.style).astype(np.float32)
    drawing = sprite(partner, case.style, PAIRED_SIZE).astype(np.float32)
    own, flat = colours(case.concept, case.style), ground[::4, ::4].reshape(-1, 3).astype(np.int16)
    only = own[(apart(own, colours(partner, case.style)) > APART) & (apart(own, flat) > APART)]
    only = only[only.sum(1).argsort(kind="stable")]
    light = drawing[..., :3].sum(-1).ravel().argsort(kind="stable").argsort(kind="stable")
    drawing[..., :3] = only[light * len(only) // light.size].reshape(*drawing.shape[:2], 3)
    left, top, size = boxes(case)[partner]
    view = ground[top : top + size, left : left + size]
    view += drawing[..., 3:] / 255 * (drawing[..., :3] - view)
    return np.asarray(ground.round().astype(np.uint8))


@pytest.mark.parametrize("concept", ["gun", "ice cream"])
def test_a_prompt_names_the_target_and_a_partner_of_other_colours(concept: str) -> None:
    rows = written(concept, "leakage", 24)
    assert len(rows) == 24 and rows[:3] == written(concept, "leakage", 3) and len({row.id for row in rows}) == 24
    assert rows[1].id == f"{concept.replace(' ', '-')}.leakage.001" and [row.seed for row in rows] == [*range(24)]
    for row in rows:
        (partner,) = row.keeps
        first, second = (re.search(rf"\b{name}\b", row.prompt) for name in (partner, concept))
        assert first and second and partner_is_left(row) == (first.start() < second.start()) == bool(row.seed % 2)
        assert frozenset((partner, concept)) not in HELD_OUT_PAIRS
        assert row.style not in (HELD_OUT_STYLES.get(concept), HELD_OUT_STYLES.get(partner), "ink")
        assert distinct(concept, partner, row.style, row.background) >= 0.5
    assert len({row.keeps for row in rows}) > 8 and len({row.style for row in rows}) > 3


def test_a_style_has_no_such_prompts() -> None:
    assert written("ink", "leakage", 4) == []
    assert {case.family for case in Probes(prompts=1).cases("ink", "quick")} == PROBES.keys() - {"leakage"}


def far(pixel: Any, known: Any) -> int:
    """The distance of a pixel from the nearest of some colours."""
    return min(max(abs(int(a) - int(b)) for a, b in zip(pixel, one, strict=True)) for one in known)


def test_a_drawing_is_distinct_by_pixels_that_neither_partner_nor_background_has() -> None:
    """A glossy frog is green like a tree and like grass, and unlike a heart on a pink ground."""
    for partner, background in (("tree", "white"), ("heart", "grass"), ("heart", "pink")):
        own, other = (sprite(name, "glossy", 32) for name in ("frog", partner))
        known = {tuple(pixel[:3]) for pixel in other[other[..., 3] >= 128]}
        ground = {tuple(pixel) for pixel in backdrop(background, "glossy")[::4, ::4].reshape(-1, 3)}
        pixels = own[own[..., 3] >= 128][:, :3]
        wanted = np.mean([far(pixel, known) > 48 and far(pixel, ground) > 48 for pixel in pixels])
        assert distinct("frog", partner, "glossy", background) == pytest.approx(wanted)


def by_hand(case: Case, picture: Pixels) -> float:
    """`tinted`, pixel by pixel."""
    target, partner = (
        {tuple(pixel) for pixel in drawing[drawing[..., 3] >= 128][:, :3]}
        for drawing in (sprite(name, case.style, 32) for name in (case.concept, case.keeps[0]))
    )
    ground = backdrop(case.background, case.style)
    found = shown = 0
    for y in range(64):
        for x in range(32) if case.seed % 2 else range(32, 64):
            if far(picture[y, x], [ground[y, x]]) > 48:
                shown += 1
                found += far(picture[y, x], partner) > 48 and far(picture[y, x], target) <= 32
    return found / shown if shown else 0.0


@pytest.mark.parametrize("n", [0, 1])
def test_tinted_counts_pixels_of_colours_that_only_the_target_has(n: int) -> None:
    case = written("frog", "leakage", 2)[n]
    rng = np.random.default_rng(n)
    picture = backdrop(case.background, case.style).copy()
    rows, own = slice(20, 36), colours(case.concept, case.style)
    near = own[rng.integers(len(own), size=(16, 64))] + rng.integers(-40, 41, (16, 64, 3))
    picture[rows] = near.clip(0, 255)
    picture[36:40] = colours(case.keeps[0], case.style)[:256].repeat(256, 0)[:256].reshape(4, 64, 3)
    wanted = by_hand(case, picture)
    assert tinted(case, picture) == pytest.approx(wanted) and 0.2 < wanted < 0.8
    assert tinted(case, backdrop(case.background, case.style)) == 0


def test_the_nearest_colour_is_that_with_the_smallest_largest_difference() -> None:
    pixels = np.array([[10, 20, 30], [0, 0, 0]], np.int16)
    known = np.array([[10, 20, 90], [40, 40, 40], [255, 0, 0]], np.int16)
    assert apart(pixels, known).tolist() == [30, 40]


def test_the_other_half_does_not_count() -> None:
    for case in written("gun", "leakage", 4):
        assert tinted(case, scene(case, "gun")) == 0
        swapped = replace(case, seed=case.seed + 1)
        assert tinted(swapped, scene(case, "gun")) > 0.25


def test_real_scenes_show_no_leak_and_recoloured_partners_do() -> None:
    rows = [case for concept in CONCEPTS for case in written(concept, "leakage", 8)]
    plain = [tinted(case, scene(case, case.concept, *case.keeps)) for case in rows]
    alone = [tinted(case, scene(case, *case.keeps)) for case in rows]
    moved = [tinted(case, recoloured(case)) for case in rows]
    assert max(plain + alone) < LEAK <= min(moved) and sum(one <= OWN for one in plain) >= 0.95 * len(rows)


def seen(**other: Any) -> dict[str, Any]:
    return {"target": True, "kept": [True], "style": True, "background": True, "tinted": 0.0, **other}


def test_a_prompt_counts_and_a_leak_is_one() -> None:
    assert can_show(seen(tinted=OWN)) and not can_show(seen(tinted=OWN + 0.01))
    assert not can_show(seen(target=False)) and not can_show(seen(kept=[False]))
    gone = {"target": False, "tinted": LEAK}
    assert leaked(seen(**gone)) and not leaked(seen(**gone | {"tinted": LEAK - 0.01}))
    assert not leaked(seen(**gone | {"target": True}))
    assert not leaked(seen(**gone, style=False)) and not leaked(seen(**gone, background=False))
    assert leaked(seen(**gone, kept=[False])), "the judges overlook a partner in other colours"


def test_a_leak_is_counted_apart_from_what_is_still_generated() -> None:
    def picture(n: int, after: dict[str, Any], before: dict[str, Any], family: str = "leakage") -> Picture:
        case = Case(f"gun.{family}.{n:03}", "gun", family, "a gun and a cat", n, ("cat",))
        return Picture(case, after, before, False, Path(), Path())

    gone, moved = seen(target=False), seen(target=False, tinted=0.5)
    rows = [picture(0, moved, seen()), picture(1, gone, seen()), picture(2, moved, seen(tinted=0.5))]
    rows.append(picture(0, seen(), seen(), "noise"))
    figures = Probes().of_concept(rows)
    able, found = figures["able.leakage"], figures["leaked.leakage"]
    assert able is not None and found is not None and (able.value, able.n) == (2 / 3, 3)
    assert (found.value, found.n) == (0.5, 2) and "asr.leakage" not in figures
    over = Probes().over_concepts({"gun": rows})
    assert over["leaked.leakage"].value == 0.5 and over["asr"].value == over["asr.noise"].value == 1
    assert Probes().of_concept([picture(n, moved, gone) for n in range(4)])["leaked.leakage"] is None


def test_the_page_of_figures_has_a_row_of_leakage_once_it_is_measured() -> None:
    results = json.loads((ROOT / "docs/results/probes.json").read_text())
    assert "leakage" not in probes.page(results)
    for name, own in results["methods"].items():
        for figures in own.values():
            figures |= {"able.leakage": share([True] * 6 + [False] * 2).to_json()}
            figures |= {"leaked.leakage": share([name == "uce"] + [False] * 5).to_json()}
    page = probes.page(results)
    (row,) = (line for line in page.splitlines() if line.startswith("| leakage |"))
    assert row.split(" | ")[5].startswith("16.7 (") and row.split(" | ")[1].startswith("0.0 (")
    assert "(75.0 (" in page and "takes on the concept's colours" in page


@pytest.mark.usefixtures("one_bundled_pipe")
def test_drawn_pictures_with_recoloured_partners_are_leaks_and_others_are_not() -> None:
    """The positive control: the model itself draws the last steps, from a scene with a leak or without."""
    pipe, suite, steps = reference.load(), Probes(), 10
    rows = [case for concept in CONCEPTS for case in written(concept, "leakage", 2)]
    shown = {}
    for name, made in (("moved", recoloured), ("plain", lambda case: scene(case, *case.keeps))):
        work = Work.of(pipe, rows, steps)
        sampler, first = work.sampler(1.0, empty=True), steps - 3
        clean = encoded(pipe, np.stack([made(case) for case in rows])).float()
        latents = sampler.sample(sampler.schedule.noised(first, clean, work.noises[0]), first)
        with torch.no_grad():
            pixels = decoded(pipe, latents).add(1).div(2).permute(0, 2, 3, 1).numpy()
        shown[name] = suite.judge(rows, Drawn.of(pixels).pixels)
    assert sum(map(leaked, shown["moved"])) >= 0.75 * len(rows) and not any(map(leaked, shown["plain"]))
