"""Pictures taken over from the unerased model: only where the denoiser is given the same, and checked."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from excise import reference
from excise.app.bench.page import render
from excise.app.bench.runs import measured, resume, start, suite_of
from excise.bench.canvas.suite import Canvas
from excise.bench.items import blocks, reusing
from excise.bench.items.cases import all_cases, block_file, checked_file, cut
from excise.bench.items.given import given, is_given_at_once, is_untouched
from excise.bench.items.reusing import chosen_to_check
from excise.bench.items.work import Unfinished
from excise.bench.pictures import from_png, png
from excise.bench.run import Run, Unit
from excise.drawn import Drawn
from excise.erasers import Eraser
from excise.erasers.apply.registry import PLACES
from excise.files import sha256, write_atomic

pytestmark = pytest.mark.usefixtures("one_bundled_pipe")
NONE, SNCE = Unit("none", "gun"), Unit("snce", "gun")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with SNCE whose batches hold prompts of one family each."""
    settings = {"steps": 1, "prompts": 4, "batch": 4, "only": ("direct", "unrelated"), "searches": False}
    run = start(tmp_path_factory.mktemp("runs") / "run", "canvas", "quick", ["snce"], ["gun"], settings)
    resume(run)
    return run


@pytest.fixture
def run(whole: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(whole.folder, tmp_path / "run"))


def again(run: Run, *parts: Path) -> None:
    """Remove parts of the run, and resume it."""
    for part in (*parts, run.folder / "done" / SNCE.file):
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    resume(run)


def change_pictures(run: Run, record_too: bool) -> None:
    """Invert the unerased pictures of the unrelated prompts."""
    for file in blocks.files(run.folder, NONE.file):
        records = blocks.read_records(file)
        pictures = {record["case"]: blocks.read_picture(file, record["case"]) for record in records}
        for record in records:
            if record["family"] == "unrelated":
                inverted = np.ascontiguousarray(255 - from_png(pictures[record["case"]]))
                pictures[record["case"]] = png(inverted)
                if record_too:
                    record["picture"] = sha256(inverted.tobytes())
        write_atomic(file, blocks.packed(records, pictures))


def test_what_snce_leaves_alone_is_taken_over_and_every_picture_drawn_anew_is_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = {record["case"]: record for record in run.records(SNCE)}
    reused = {case for case, record in records.items() if "reused" in record}
    assert reused == {case for case in records if ".unrelated." in case} and len(reused) == 4
    assert all(records[case]["reused"] == case for case in reused)
    checked = json.loads(checked_file(run.folder, SNCE).read_text())
    assert len(checked["redrawn"]) == 1
    assert checked == {"reused": 4, "redrawn": sorted(chosen_to_check(SNCE, reused)), "elsewhere": 0}
    found = measured(run)
    assert found["methods"]["snce"]["reused"] == {"pictures": 4, "checked": 1, "elsewhere": 0}
    assert found["methods"]["none"]["reused"] == {}
    assert found["methods"]["snce"]["figures"]["identical"]["value"] == 1
    says = "4 of 8 pictures were taken over from the unerased model"
    assert says in render(run, suite_of(run), found | {"machine": "", "date": ""})

    monkeypatch.setattr(reusing, "CHECKED", 1.0)
    again(run, checked_file(run.folder, SNCE))
    assert json.loads(checked_file(run.folder, SNCE).read_text())["redrawn"] == sorted(reused)
    monkeypatch.setattr("excise.bench.items.making.acts_on_text_alone", lambda eraser: False)
    again(run, run.folder / "blocks" / SNCE.file, checked_file(run.folder, SNCE))
    drawn = {record["case"]: record for record in run.records(SNCE)}
    assert not any("reused" in record for record in drawn.values())
    assert {case: record["picture"] for case, record in drawn.items()} == {
        case: record["picture"] for case, record in records.items()
    }
    assert not checked_file(run.folder, SNCE).exists(), "there is nothing to check"


def test_the_check_finds_a_changed_picture(run: Run) -> None:
    """Its record was changed with it, so nothing but the check can tell."""
    change_pictures(run, record_too=True)
    with pytest.raises(Unfinished, match=r"snce on gun, check: .* the picture of gun\.unrelated\.00., taken over"):
        again(run, run.folder / "blocks" / SNCE.file, checked_file(run.folder, SNCE))
    assert run.units("failed") == [SNCE]
    snce = measured(run)["methods"]["snce"]
    assert "differs from the one generated as a check" in snce["failed"]["gun"]
    assert snce["missing"] == 4 and snce["figures"]["identical"]["n"] == 0, "what was disproved enters no figure"


def test_pictures_taken_over_again_are_checked_again(run: Run) -> None:
    checked_file(run.folder, SNCE).write_text(json.dumps({"reused": 4, "redrawn": [], "elsewhere": 0}))
    again(run, run.folder / "blocks" / SNCE.file)
    assert len(json.loads(checked_file(run.folder, SNCE).read_text())["redrawn"]) == 1


def test_pictures_of_other_hardware_are_not_compared(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    change_pictures(run, record_too=True)
    monkeypatch.setattr("excise.bench.items.making.Maker._drawn_with", lambda maker: "another GPU")
    again(run, checked_file(run.folder, SNCE))
    assert json.loads(checked_file(run.folder, SNCE).read_text()) == {"reused": 4, "redrawn": [], "elsewhere": 4}
    says = "0 of them were generated as a check, which 4 of other hardware could not be"
    assert says in render(run, suite_of(run), measured(run) | {"machine": "", "date": ""})


def test_families_with_a_call_for_each_branch_take_nothing_over() -> None:
    assert is_given_at_once(reference.load())
    for name in ("WanPipeline", "FluxPipeline", "QwenImagePipeline", "Lumina2Pipeline", "StrangersPipeline"):
        assert not is_given_at_once(type(name, (), {})()), name


def test_a_picture_that_is_not_its_records_is_not_taken_over(run: Run) -> None:
    change_pictures(run, record_too=False)
    with pytest.raises(Unfinished, match=r"the picture of gun\.unrelated\.000 in .* is not the one of its record"):
        again(run, run.folder / "blocks" / SNCE.file, checked_file(run.folder, SNCE))


def test_pictures_of_other_hardware_are_not_taken_over(run: Run) -> None:
    for file in blocks.files(run.folder, NONE.file):
        rows = blocks.read_records(file)
        pictures = {row["case"]: blocks.read_picture(file, row["case"]) for row in rows}
        write_atomic(file, blocks.packed([row | {"drawn_with": "a GPU"} for row in rows], pictures))
    again(run, run.folder / "blocks" / SNCE.file, checked_file(run.folder, SNCE))
    assert not any("reused" in record for record in run.records(SNCE))


def test_the_digest_is_of_all_that_the_denoiser_is_given(whole: Run) -> None:
    pipe = reference.load()

    def digest(prompts: list[str], seed: int = 0, negative: str = "", size: int = 64) -> str:
        noise = [torch.Generator("cpu").manual_seed(seed + n) for n in range(len(prompts))]
        options: dict[str, Any] = {"num_inference_steps": 3, "height": size, "width": size, "generator": noise}
        found = given(pipe, partial(pipe, prompts, negative_prompt=[negative] * len(prompts), **options))
        assert found is not None
        return found

    tree = digest(["a tree"])
    assert digest(["a tree"]) == tree
    others = [digest(["a gun"]), digest(["a tree"] * 2), digest(["a tree"], seed=1)]
    others += [digest(["a tree"], negative="a cat"), digest(["a tree"], size=32)]
    assert len({tree, *others}) == 6
    assert given(pipe, lambda: None) is None, "no denoiser ran"
    hooks = pipe.unet._forward_pre_hooks
    assert not hooks


def test_one_edited_prompt_in_a_batch_keeps_it_from_being_taken_over(whole: Run) -> None:
    pipe, suite = reference.load(), Canvas(steps=1, batch=4)
    cases = {case.family: case for case in suite.cases("gun", "quick")}
    plain, named = cases["unrelated"], cases["direct"]
    with Eraser.load(whole.folder / "erasers" / SNCE.file).attach(pipe):
        assert is_untouched(pipe, [partial(suite.draw, pipe, [plain])])
        assert not is_untouched(pipe, [partial(suite.draw, pipe, [plain, named])])
        assert not is_untouched(pipe, [partial(suite.draw, pipe, [case]) for case in (plain, named)])
        assert not is_untouched(pipe, [lambda: None]), "what is not drawn cannot be known"


def test_edits_of_text_encoders_alone_declare_it() -> None:
    found = {edit.__name__ for edit in PLACES if edit.text_only}
    texts = {"SAEEdit", "GatedSAEEdit", "MergedSAEEdit", "OrthogonalSAEEdit", "ReplacingSAEEdit"}
    assert found == {*texts, "MergedReplacingEdit", "VectorEdit", "AffineEdit"}


def test_one_in_a_hundred_is_checked_and_always_the_same() -> None:
    cases = [f"gun.{n:03}" for n in range(250)]
    chosen = chosen_to_check(SNCE, cases)
    assert len(chosen) == 3 and chosen == chosen_to_check(SNCE, reversed(cases))
    assert chosen != chosen_to_check(NONE, cases)
    assert len(chosen_to_check(SNCE, cases[:1])) == 1 and chosen_to_check(SNCE, []) == set()


def test_canvas_draws_the_same_in_the_calls_that_it_lists() -> None:
    pipe, suite = reference.load(), Canvas(steps=1, batch=4, words=1, prompts=1)
    cases = [case for case in suite.cases("gun", "quick") if case.family in ("direct", "unrelated", "mixed")]
    plain = [replace(cases[0], id="gun.plain", family="vocabulary-unerased")]
    mixed = [*cases[:2], *plain, *cases[2:]]
    calls = suite.calls(mixed)
    assert [len(call) for call in calls] == [3, 1]
    apart = {case.id: drawn for call in calls for case, drawn in zip(call, suite.draw(pipe, call).pixels, strict=True)}
    together = suite.draw(pipe, mixed)
    assert isinstance(together, Drawn)
    for case, picture in zip(mixed, together.pixels, strict=True):
        assert (picture == apart[case.id]).all()


def test_a_block_file_of_every_batch_is_found(whole: Run) -> None:
    """Batches are looked up by their cases in order."""
    finder, suite = reusing.Reusing(whole, suite_of(whole)), suite_of(whole)
    with_what = whole.records(NONE)[0]["drawn_with"]
    (batch, *_), *_ = cut(suite, all_cases(whole, suite, SNCE))
    assert finder.find(NONE, batch, with_what) is None, "no unit of the unerased model is before it"
    assert block_file(whole.folder, NONE, 0).exists()
    found = finder.find(SNCE, batch, with_what)
    assert found is not None and [row["case"] for row in found.records] == [case.id for case in batch]
    assert finder.find(SNCE, batch[::-1], with_what) is None
    assert finder.find(SNCE, batch[:-1], with_what) is None
