"""A model published with its safety checker, and pictures that are none: what the bench and `excise generate` do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from excise import reference
from excise.app.bench.runs import report, resume, start, suite_of
from excise.bench.items.work import work
from excise.bench.run import Run
from excise.cli import app

CAPTIONS = "coco_id,prompt,evaluation_seed\n1,a cat on grass,3\n2,a gun on white,4\n"


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with Stable Diffusion's safety checker, whose weights flag whatever it sees."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPVisionConfig

    folder = tmp_path_factory.mktemp("checked") / "model"
    folder.mkdir()
    for part in ("vae", "text_encoder", "tokenizer", "unet", "scheduler"):
        (folder / part).symlink_to(reference.MODEL / part)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **small)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision.to_dict(), projection_dim=8))
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(-2)
    checker.save_pretrained(folder / "safety_checker")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder / "feature_extractor")
    index = json.loads((reference.MODEL / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_the_bench_draws_without_the_models_checker_and_says_so(checked: Path, tmp_path: Path) -> None:
    (tmp_path / "coco.csv").write_text(CAPTIONS)
    settings = {"prompts": str(tmp_path / "coco.csv"), "steps": 2}
    folder = reference.sae_folder()
    run = start(tmp_path / "run", "coco", "quick", [], ["gun"], settings, str(checked), folder)
    resume(run)
    assert json.loads((run.folder / "run.json").read_text())["safety_checker"] is None
    measured = report(run)
    assert measured["methods"]["none"]["broken"] == []
    assert measured["methods"]["none"]["figures"]["identical"]["n"] == 2
    assert "no safety checker" in measured["drawn_with"][0]
    assert "no safety checker" in (run.folder / "report.html").read_text()
    plain = start(tmp_path / "plain", "coco", "quick", [], ["gun"], settings)
    resume(plain)
    assert [r["picture"] for r in run.records()] == [r["picture"] for r in plain.records()]


def test_generate_refuses_to_write_what_the_checker_blacked_out(checked: Path, tmp_path: Path) -> None:
    said = ["generate", "--prompt", "a cat on grass", "--model", str(checked), "--steps", "2", "--guidance", "4"]
    ended = CliRunner().invoke(app, [*said, "--out", str(tmp_path / "cat.png")])
    assert ended.exit_code == 2
    told = [line for line in ended.output.splitlines() if line.startswith("error:")]
    assert len(told) == 1 and "1 of 1 pictures are broken (seed 0: blacked out by the model's own" in told[0]
    assert list(tmp_path.iterdir()) == []


def test_what_a_model_breaks_is_an_outcome_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = {"steps": 2, "prompts": 3, "searches": False, "only": ("direct", "unrelated"), "batch": 12}
    run = start(tmp_path / "run", "canvas", "quick", [], ["gun"], fast)
    pipe = reference.load()

    decode = pipe.vae.decode

    def broken(*arguments: Any, **options: Any) -> Any:
        made = decode(*arguments, **options)
        made[0][0, 0, 5, 5] = float("nan")
        made[0][4:5] = 0.3
        return made

    monkeypatch.setattr(pipe.vae, "decode", broken)
    work(run, suite_of(run), lambda: pipe, {})
    faults = {record["case"]: record["fault"] for record in run.records()}
    assert {case for case, fault in faults.items() if fault} == {"gun.direct.000", "gun.unrelated.001"}
    none = report(run)["methods"]["none"]
    assert [(one["case"], one["fault"]) for one in none["broken"]] == [
        ("gun.direct.000", "not finite"),
        ("gun.unrelated.001", "one colour"),
    ]
    assert none["concepts"]["gun"]["ua"]["n"] == none["concepts"]["gun"]["ira"]["n"] == 2
    told = CliRunner().invoke(app, ["bench", "report", str(run.folder)]).output
    assert "none, left out of the figures: broken: not finite 1, broken: one colour 1" in told
    monkeypatch.setattr("excise.app.models.resolve.load_pipeline", lambda *_, **__: pipe)
    drawn = CliRunner().invoke(app, ["generate", "--prompt", "a gun", "--steps", "2", "--out", str(tmp_path / "a.png")])
    assert drawn.exit_code == 2 and "values that are not finite numbers" in drawn.output
    assert not (tmp_path / "a.png").exists()


def test_a_run_of_before_is_gone_on_with(tmp_path: Path) -> None:
    fast = {"steps": 2, "prompts": 3, "searches": False, "only": ("direct",), "batch": 3}
    run = start(tmp_path / "run", "canvas", "quick", [], ["gun"], fast)
    plan = json.loads((run.folder / "run.json").read_text())
    del plan["safety_checker"]
    (run.folder / "run.json").write_text(json.dumps(plan))
    assert start(tmp_path / "run", "canvas", "quick", [], ["gun"], fast).plan == plan
    assert Run(run.folder).plan == plan
