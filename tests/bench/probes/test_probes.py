from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import excise
from excise import reference
from excise.bench.canvas.families import attacked
from excise.bench.latents import decoded, encoded
from excise.bench.probes import noisy_classifier
from excise.bench.probes.probes import PROBES, Work, mask_of, scene_of
from excise.bench.probes.suite import PROMPTS, Probes, by_prompt, still
from excise.bench.suite import Case, Picture
from excise.errors import ExciseError
from excise.reference.scenes import backdrop, render

pytestmark = pytest.mark.usefixtures("one_bundled_pipe")
STEPS = 8


@pytest.fixture
def barely_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noisy_classifier, "SCENES", 64)
    monkeypatch.setattr(noisy_classifier, "STEPS", 3)
    monkeypatch.setattr(noisy_classifier, "_TRAINED", {})


def case_of(probe: str, concept: str = "gun", n: int = 0) -> Case:
    return attacked(concept, probe, n + 1)[n]


def test_a_mask_covers_the_target_and_a_scene_is_what_the_prompt_asks_for() -> None:
    for n in range(6):
        case = case_of("inpainting", n=n)
        scene = scene_of(case)
        assert scene == scene_of(case) and scene.objects[0] == "gun" and scene.style == case.style
        wide = mask_of(case, 8).repeat_interleave(8, 1).repeat_interleave(8, 2)[0].bool().numpy()
        differs = (render(scene) != backdrop(scene.background, scene.style)).any(-1)
        assert differs.any() and not differs[~wide].any()
    style = case_of("inpainting", "ink")
    assert scene_of(style).style == "ink" and mask_of(style, 8).sum() == 16 and mask_of(style, 8)[0, 2:6, 2:6].all()


def test_inpainting_keeps_what_is_not_masked() -> None:
    pipe = reference.load()
    work = Work.of(pipe, [case_of("inpainting")], STEPS)
    made, given = PROBES["inpainting"].draw(work), work.scenes()
    mask = mask_of(work.cases[0], 8).bool().expand_as(made[0])
    assert torch.allclose(made[0][~mask], given[0][~mask], atol=1e-4)
    assert not torch.allclose(made[0][mask], given[0][mask], atol=0.1)


def test_half_of_img2img_keeps_more_of_the_scene_than_three_quarters() -> None:
    work = Work.of(reference.load(), [case_of("img2img")], STEPS)
    apart = [float((PROBES["img2img"].draw(work, strength) - work.scenes()).abs().mean()) for strength in (0.25, 1.0)]
    assert apart[0] < apart[1]


def test_completion_is_begun_by_the_unerased_model_and_ended_by_the_erased_one() -> None:
    pipe = reference.load()
    work = Work.of(pipe, [case_of("completion")], STEPS)
    plain = work.sampler().sample(work.noises[0])
    assert torch.allclose(PROBES["completion"].draw(work, 0.25), plain, atol=1e-4)
    with excise.erase(pipe, Probes().concept("gun")).attach(pipe):
        edited = work.sampler().sample(work.noises[0])
        assert torch.equal(PROBES["completion"].draw(work, 1.0), plain)
        assert torch.equal(PROBES["completion"].draw(work, 0.0), edited)
        some = PROBES["completion"].draw(work, 0.5)
    assert not torch.allclose(some, plain, atol=1e-2) and not torch.allclose(some, edited, atol=1e-2)


def test_an_inverted_scene_comes_back_without_a_prompt() -> None:
    work = Work.of(reference.load(), [case_of("inversion-empty")], 20)
    made, given = PROBES["inversion-empty"].draw(work), work.scenes()
    assert float((made - given).abs().mean()) < 0.25 * float((given - given.mean()).abs().mean())


def test_latents_of_a_picture_decode_to_about_the_picture() -> None:
    picture = render(scene_of(case_of("img2img")))
    pipe = reference.load()
    with torch.no_grad():
        made = decoded(pipe, encoded(pipe, picture[None]))[0].permute(1, 2, 0)
    assert np.abs(127.5 * (made.numpy() + 1) - picture).mean() < 8


@pytest.mark.usefixtures("barely_trained")
def test_the_suite_draws_every_probe_whatever_else_is_in_the_batch() -> None:
    pipe, suite = reference.load(), Probes(steps=2, prompts=2, batch=2)
    rows = suite.cases("gun", "quick")
    assert {case.family for case in rows} == PROBES.keys() and len({case.id for case in rows}) == len(rows)
    assert list(map(Case.from_json, [vars(case) for case in rows])) == rows
    assert len(rows) == 2 * sum(len(probe.constants) for probe in PROBES.values())
    some = [
        case for case in rows if case.constants in ((), (10.0,), (0.5,), (1.17, 1.02)) and case.family != "resurgence"
    ]
    drawn = suite.draw(pipe, some)
    for n, case in enumerate(some[::3]):
        alone = suite.draw(pipe, [case])
        assert np.array_equal(alone.pixels[0], drawn.pixels[3 * n])
    assert {"target", "second"} <= suite.judge(some[:1], drawn.pixels[:1])[0].keys()


def test_the_best_of_a_prompts_pictures_counts() -> None:
    def picture(seed: int, target: bool, unerased: bool) -> Picture:
        case = Case(f"gun.noise.{seed:03}", "gun", "noise", "a gun", seed)
        return Picture(case, {"target": target}, {"target": unerased}, False, Path(), Path())

    pictures = [picture(0, False, True), picture(0, True, False), picture(1, True, False), picture(2, False, True)]
    prompts = by_prompt(pictures, "noise")
    assert prompts == [(True, True), (False, True), (True, False)] and by_prompt(pictures, "img2img") == []
    assert still(prompts) == [True, False]
    figures = Probes().of_concept(pictures)
    drawn, left = figures["drawn.noise"], figures["asr.noise"]
    assert drawn is not None and left is not None
    assert (drawn.value, drawn.n, left.value, left.n) == (2 / 3, 3, 0.5, 2)
    over = Probes().over_concepts({"gun": pictures, "cat": [picture(0, False, False)]})
    assert over["asr.noise"].value == over["asr"].value == 0.5 and over["asr.noise"].n == 1
    rare = Probes().of_concept([picture(n, True, n == 0) for n in range(5)])
    assert rare["asr.noise"] is None


def test_unknown_probes_and_sizes_are_refused() -> None:
    with pytest.raises(ExciseError, match="there is no probe 'telepathy'; choose from noise, inpainting"):
        Probes(only=("telepathy",))
    with pytest.raises(ExciseError, match=f"unknown size 'huge'; choose one of {', '.join(PROMPTS)}"):
        Probes().cases("gun", "huge")


def test_the_classifier_learns_what_noised_latents_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noisy_classifier, "SCENES", 512)
    monkeypatch.setattr(noisy_classifier, "STEPS", 60)
    monkeypatch.setattr(noisy_classifier, "_TRAINED", {})
    pipe: Any = reference.load()
    model = noisy_classifier.trained(pipe)
    assert noisy_classifier.trained(pipe) is model
    score = model.score(["ink"] * 8)
    styles = ("ink", "bold", "flat", "pastel")
    empty = np.stack([backdrop(ground, style) for ground in ("sky", "pink") for style in styles])
    clean = encoded(pipe, empty)
    likely = score(clean, torch.tensor(0.9))
    assert likely.shape == (8,) and likely[[0, 4]].min() > likely[[1, 2, 3, 5, 6, 7]].max()
