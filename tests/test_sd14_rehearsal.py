"""The commands of docs/how-to/sd14.md, in order, on a folder laid out as Stable Diffusion 1.4 is published.

Inside are the bundled model's weights, so a gun is erased. As published: a safety checker, PNDM, files in float16
next to those in float32, a tokenizer of vocab.json and merges.txt with 77 tokens, and a text encoder whose
configuration has the eos id 2, which no token has. Prompt sets have the published columns with harmless rows; CLIP and
Q16 have random weights.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from excise import reference
from excise.bench.run import Run
from tests.documented import FENCE, ROOT, Command, commands

PAGE = "docs/how-to/sd14.md"
LEFT_OUT = {
    "bench fid": "needs torchvision, which the extra dev leaves out",
    "bench run unlearncanvas": "classifiers of 1.2 GB; tests/bench/protocols/test_unlearncanvas.py has small ones",
    "reproduce saemnesia": "reads that run",
}
"""Beginnings of the page's commands that are not rehearsed, and why."""
SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction", "skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False,
}  # fmt: skip
"""PNDM as in SD 1.4, but with the noise and the prediction that the bundled U-Net was trained on."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder."""
    from diffusers import PNDMScheduler
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPVisionConfig

    folder = tmp_path_factory.mktemp("published") / "stable-diffusion-v1-4"
    pipe = reference.load()
    pipe.scheduler = PNDMScheduler(**SCHEDULER)
    pipe.save_pretrained(folder)
    pipe.to(dtype=torch.float16).save_pretrained(folder, variant="fp16")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **small)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision.to_dict(), projection_dim=8))
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(2)  # no cosine is above it
    checker.save_pretrained(folder / "safety_checker")
    checker.half().save_pretrained(folder / "safety_checker", variant="fp16")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder / "feature_extractor")
    edit(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
         feature_extractor=["transformers", "CLIPImageProcessor"], requires_safety_checker=True)  # fmt: skip
    edit(folder / "text_encoder" / "config.json", bos_token_id=0, eos_token_id=2, pad_token_id=1)
    tokens = folder / "tokenizer"
    model = json.loads((tokens / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (tokens / "tokenizer.json").unlink()
    (tokens / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (tokens / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    edit(tokens / "tokenizer_config.json", model_max_length=77)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
    assert {"unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"} <= names
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


I2P = """,prompt,categories,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height
0,a gun on grass,"sexual, violence",7,4,64,64
1,a cat on a wooden table,"violence, sexual",8,4,64,64
"""
FILES = {
    "i2p.csv": I2P,
    "i2p_benchmark.csv": I2P,
    "nudity-p4d.csv": ",prompt,evaluation_seed,evaluation_guidance,case_number,safe_model,safe_level\n"
    "0,a gun on grass,305,4,0,esd,8\n",
    "nudity-ring-a-bell.csv": "sensitive prompt,normal prompt\na gun on grass,a cat on grass\n",
    "coco-3000.csv": "coco_id,prompt,evaluation_seed\n1,a cat on grass,3\n2,a gun on white,4\n",
}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the reader works in, with the files that others publish."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer

    folder = tmp_path_factory.mktemp("reader")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    captions = list(reference.sae_corpus())[:600]
    rows = {"prompt": captions, "prompt_nsfw": [0.75] * len(captions)}
    parquet.write_table(pyarrow.table(rows), folder / "metadata.parquet")
    (folder / "prompts.p").write_bytes(pickle.dumps(np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)))
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=CLIPTextConfig(vocab_size=49408, **small).to_dict(),
        vision_config={"image_size": 32, "patch_size": 8, **small},
        projection_dim=8,
    )
    for name in ("clip-vit-large-patch14", "clip-vit-base-patch32"):
        CLIPModel(config).save_pretrained(folder / "openai" / name)
        CLIPTokenizer.from_pretrained(reference.MODEL / "tokenizer").save_pretrained(folder / "openai" / name)
    return folder


def rehearsed() -> list[Command]:
    page = [c for c in commands() if c.page == PAGE and (c.fenced or len(c.words) > 2)]
    return [
        c for c in page if not c.text.startswith(tuple(LEFT_OUT)) and "--help" not in c.words and c.words[1] != "make"
    ]


def small(command: Command, model: Path) -> list[str]:
    """Return the command's words for this model, which knows guns, on this machine."""
    names = {"$MODEL": str(model), "cuda": "cpu", "encoder.layers.8": "encoder.layers.5", "nudity": "gun"}
    words = [names.get(word, word) for word in command.words]
    for option, value in (("--tokens", "20000"), ("--steps", "2"), ("--n", "1")):
        if option in words:
            words[words.index(option) + 1] = value
    if words[0] == "find":
        words += ["--n", "24"]
    if "--sweep-sites" in words:
        words += ["--sweep-tokens", "2000"]
    if words[:2] == ["bench", "run"]:
        words += ["--concepts", "gun", "--steps", "2"]
    return words


@pytest.mark.slow
def test_the_pages_commands_run_in_order_on_a_folder_as_published(
    published: Path, reader: Path, call_excise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reader)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    (heredoc,) = [
        re.search(r"<<'END'\n(.*?)^END$", m["body"], re.S | re.M) for m in FENCE.finditer(text) if "<<" in m["body"]
    ]
    assert heredoc is not None
    ran = []
    for command in rehearsed():
        if "--sweep-sites" in command.words:
            subprocess.run([sys.executable, "-c", heredoc[1]], cwd=reader, check=True, timeout=600)
        done = call_excise(*small(command, published))
        assert done.exit_code == 0, f"{command}\n{done.output}"
        ran.append(" ".join(command.words[:2]))
        if command.words[:2] == ("sae", "info"):
            # Trained so briefly, an SAE knows no gun. The bundled one reads the same Site of the same encoder.
            shutil.rmtree("sae-layers8")
            shutil.copytree(reference.sae_folder(), "sae-layers8")
        if command.words[:2] == ("generate", "--model") and "--json" in command.words:
            assert json.loads(done.stdout)["changed"] == 0, "a bowl of fruit is not a gun"
    assert {"sae train", "find nudity", "erase nudity", "verify nudity-eraser", "bench run", "reproduce snce"} <= set(
        ran
    )
    run = Run("run-i2p")
    fits = [json.loads(path.read_text(encoding="utf-8")) for path in (run.folder / "fits").glob("*.json")]
    assert {"refused" in fit for fit in fits} == {False}
    for fit in fits:
        assert "StableDiffusionPipeline, PNDMScheduler, float32" in fit["drawn_with"]
        assert "no safety checker" in fit["drawn_with"]
    same = {record["case"]: record["picture"] for record in run.records() if record["method"] == "none"}
    own = [r for r in run.records() if r["method"] == "snce:preset=paper,source=prompt"]
    assert len(own) == 2
    assert {r["picture"] == same[r["case"]] for r in own if r["case"] == "i2p.00001"} == {True}, "a cat is not a gun"


@pytest.mark.slow
def test_the_eraser_acts_on_the_float16_files_too(
    published: Path, reader: Path, call_excise: Callable[..., Any]
) -> None:
    if not (reader / "gun-eraser").exists():
        done = call_excise(
            "erase", "gun", "--model", published, "--sae", reference.sae_folder(), "--out", reader / "gun-eraser"
        )
        assert done.exit_code == 0, done.output
    words = (
        "generate",
        "--model",
        published,
        "--variant",
        "fp16",
        "--dtype",
        "float32",
        "--eraser",
        reader / "gun-eraser",
    )
    more = ("--compare", "--steps", "2", "--prompt", "a gun on grass", "--prompt", "a cat on grass")
    done = call_excise(*words, *more, "--out", reader / "fp16.png", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["changed"] == 1


@pytest.fixture
def call_excise() -> Callable[..., Any]:
    from typer.testing import CliRunner

    from excise.cli import app

    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_every_command_that_is_left_out_is_on_the_page() -> None:
    texts = [command.text for command in commands() if command.page == PAGE]
    assert all(any(text.startswith(begins) for text in texts) for begins in LEFT_OUT)
    assert len(rehearsed()) > 18
