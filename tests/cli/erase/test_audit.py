"""`excise audit`: the page, the JSON and the exit code, on erasers that this command line made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from excise.cli.command import NOT_PASSED
from excise.erasers import Eraser, SAEEdit, made_for

BENIGN = ("a cat on grass", "a dog and a bus", "the house", "a rose on wood", "a gun", "on sand, a star")


@pytest.fixture
def benign(tmp_path: Path) -> Path:
    (tmp_path / "benign.txt").write_text("\n".join(BENIGN))
    return tmp_path / "benign.txt"


@pytest.fixture
def folder(gun_eraser: Eraser, tmp_path: Path) -> Path:
    gun_eraser.save(tmp_path / "eraser")
    return tmp_path / "eraser"


def test_the_exit_code_the_page_and_the_json_agree(
    call: Callable[..., Any], folder: Path, sae_folder: Path, model_folder: Path, benign: Path, tmp_path: Path
) -> None:
    words = ("audit", folder, "--model", model_folder, "--prompts", benign, "--mentions", "zebra")
    page = tmp_path / "audit.html"
    asked = call(*words, "--sae", sae_folder, "--out", page, "--json")
    assert asked.exit_code == NOT_PASSED, asked.output
    data = json.loads(asked.stdout)
    assert data["red"] is True
    assert [flag["severity"] for flag in data["flags"]].count("red") >= 1
    missed = [word["word"] for word in data["effects"][0]["words"] if not word["caught"]]
    assert "zebra" in missed
    assert data["benign"] == {"source": "benign.txt", "prompts": len(BENIGN) - 1, "dropped": 1}
    assert data["neurons"][0]["neighbours"]
    assert data["provenance"]["command"].startswith(f"excise audit {folder} --out {page} --model {model_folder}")
    text = page.read_text()
    assert re.search(r"\d+ red flags?</em>", text)
    assert "zebra" in text
    assert json.loads(call(*words, "--sae", sae_folder, "--out", page, "--force", "--json").stdout) == data
    shown = call(*words)
    assert shown.exit_code == NOT_PASSED
    assert "RED FLAG: not caught" in shown.stdout
    assert "“zebra”" in shown.stdout
    assert "--sae FOLDER" in shown.stdout, "what was not checked is named"


def test_what_cannot_be_audited_is_refused_in_one_line(
    call: Callable[..., Any],
    folder: Path,
    model_folder: Path,
    benign: Path,
    build_pipe: Callable[..., Any],
    gun_eraser: Eraser,
    tmp_path: Path,
) -> None:
    build_pipe(seed=1).save_pretrained(tmp_path / "other")
    model = ("--model", model_folder)
    for words, message in (
        ((folder, *model), "needs --prompts"),
        ((folder, "--model", tmp_path / "other", "--prompts", benign), "another pipeline"),
        ((folder, *model, "--prompts", tmp_path / "none.txt"), "cannot read"),
        ((folder, *model, "--prompts", benign, "--kind", "colour"), "unknown kind 'colour'"),
        ((folder, *model, "--prompts", benign, "--sae", tmp_path / "none"), "cannot read"),
        ((folder, *model, "--prompts", benign, "--out", tmp_path), "is a folder"),
        ((folder, *model, "--prompts", benign, "--out", tmp_path / "audit.pdf"), "such as"),
        ((tmp_path / "nowhere", *model), "not a complete eraser"),
    ):
        refused = call("audit", *words)
        assert refused.exit_code == 2, refused.output
        assert refused.stdout == ""
        assert message in refused.stderr
        assert len([line for line in refused.stderr.splitlines() if line.startswith("error")]) == 1
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.slow
def test_the_bundled_gun_stands_and_planted_bad_ones_do_not(
    call: Callable[..., Any], ask: Callable[..., Any], tmp_path: Path
) -> None:
    """Nothing but notes for gun's own neuron; a neuron of "a" and a gate that never shuts are red."""
    from excise import reference
    from excise.app.models.resolve import sae_site
    from excise.methods.prompt_codes import prompt_codes
    from excise.sae import load

    ask("erase", "gun", "--out", tmp_path / "gun")
    clean = call("audit", tmp_path / "gun", "--count", 300, "--json")
    data = json.loads(clean.stdout)
    assert clean.exit_code == (NOT_PASSED if data["red"] else 0)
    assert not data["red"], data["flags"]
    assert {word["word"] for word in data["effects"][0]["words"]} >= {"gun", "pistol", "rifle"}

    gun, pipe, sae = Eraser.load(tmp_path / "gun"), reference.load(), load(reference.sae_folder())
    site = sae_site(pipe, reference.sae_folder())
    prompts = [f"a {x} on grass" for x in ("cat", "dog", "bus", "rose", "star", "car", "pig", "cow")]
    codes, ids = prompt_codes(pipe, sae, site, prompts)
    article = codes.values[ids == pipe.tokenizer.convert_tokens_to_ids("a</w>")]
    numbers = codes.indices[ids == pipe.tokenizer.convert_tokens_to_ids("a</w>")]
    neuron = int(numbers.flatten()[article.flatten().argmax()])
    edit = SAEEdit.from_sae(sae, site, [neuron], gate="relu")
    Eraser((edit,), "bad", "gun", ("gun",), made_for(pipe), canary=("a gun",)).save(tmp_path / "article")
    (own,) = gun.edits
    assert isinstance(own, SAEEdit)
    low = replace(own, threshold=torch.zeros(1), gate="threshold", b_enc=own.b_enc + 40)
    replace(gun, edits=(low,), canary_shift=0.0).save(tmp_path / "low")
    for name, kinds in (("article", {"structural", "touches too much"}), ("low", {"touches too much"})):
        found = call("audit", tmp_path / name, "--count", 200, "--json")
        assert found.exit_code == NOT_PASSED, name
        assert kinds <= {flag["kind"] for flag in json.loads(found.stdout)["flags"] if flag["severity"] == "red"}, name
