"""Several erasers named at once: --eraser again and again, and a folder of erasers in every command that takes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from excise.erasers import Eraser

Ask = Callable[..., Any]


@pytest.fixture
def erasers(firm_eraser: Eraser, tmp_path: Path) -> Path:
    firm_eraser.save(tmp_path / "erasers" / "gun")
    second = replace(firm_eraser, name="second", concept="pistol", edits=(replace(firm_eraser.edits[0], lam=3.0),))
    second.save(tmp_path / "erasers" / "pistol")
    return tmp_path / "erasers"


def test_generate_attaches_every_eraser_that_is_named(
    ask: Ask, call: Ask, erasers: Path, model_folder: Path, tiny_pipe: Any, tmp_path: Path
) -> None:
    drawing = ("--prompt", "a gun", "--model", model_folder, "--steps", 1)
    pictures = {}
    for name, given in {
        "first": ("--eraser", erasers / "gun"),
        "second": ("--eraser", erasers / "pistol"),
        "both": ("--eraser", erasers / "gun", "--eraser", erasers / "pistol"),
        "folder": ("--eraser", erasers),
    }.items():
        out = tmp_path / f"{name}.png"
        told = ask("generate", *drawing, *given, "--out", out)
        assert len(told["erasers"]) == (1 if name in ("first", "second") else 2)
        pictures[name] = out.read_bytes()
    assert pictures["both"] == pictures["folder"]
    assert len(set(pictures.values())) == 3
    twice = call("generate", *drawing, "--eraser", erasers / "gun", "--eraser", erasers, "--out", tmp_path / "no.png")
    assert twice.exit_code == 2
    assert "are the same eraser" in twice.stderr
    assert not (tmp_path / "no.png").exists()


def test_verify_checks_every_eraser_of_a_folder(ask: Ask, call: Ask, erasers: Path, model_folder: Path) -> None:
    told = ask("verify", erasers, "--model", model_folder)
    assert told["passed"]
    assert [Path(one["folder"]).name for one in told["erasers"]] == ["gun", "pistol"]
    assert all("canary" in [check["name"] for check in one["checks"]] for one in told["erasers"])
    weights = erasers / "pistol" / "eraser.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    broken = call("verify", erasers, "--model", model_folder)
    assert broken.exit_code == 2
    assert "pistol was altered" in broken.stderr


def test_audit_writes_a_page_for_every_eraser_of_a_folder(
    call: Ask, erasers: Path, model_folder: Path, tmp_path: Path
) -> None:
    benign = tmp_path / "benign.txt"
    benign.write_text("a cat on grass\na dog\n")
    common = ("--model", model_folder, "--prompts", benign)
    result = call("audit", erasers, "--out", tmp_path / "pages", *common)
    assert result.exit_code in (0, 3), result.output
    assert sorted(page.name for page in (tmp_path / "pages").iterdir()) == ["gun.html", "pistol.html"]
    (tmp_path / "taken").write_text("mine")
    refused = call("audit", erasers, "--out", tmp_path / "taken", *common)
    assert refused.exit_code == 2
    assert "is a file; name a folder" in refused.stderr


def test_push_gives_every_eraser_of_a_folder_a_repository(ask: Ask, call: Ask, erasers: Path, hub: Any) -> None:
    told = ask("push", erasers, "someone/weapons")
    assert [row["repo"] for row in told] == ["someone/weapons-gun", "someone/weapons-pistol"]
    assert {"someone/weapons-gun", "someone/weapons-pistol"} <= set(hub.repositories)
    (erasers / "pistol" / "manifest.json").unlink()
    before = dict(hub.repositories)
    assert call("push", erasers, "someone/other").exit_code == 2
    assert set(hub.repositories) == set(before)


def test_a_negative_strength_is_refused_in_the_commands_own_words(call: Ask, erasers: Path) -> None:
    refused = call("generate", "--prompt", "a gun", "--eraser", erasers, "--strength", -1)
    assert refused.exit_code == 2
    assert "--allow-amplify" in refused.stderr
    assert "allow_amplify" not in refused.stderr


def test_push_tells_a_bad_name_from_a_hub_that_is_not_reached(
    call: Ask, erasers: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = erasers / "gun"
    bad = call("push", folder, "no/such/name")
    assert bad.exit_code == 2
    assert "'no/such/name' is not a repository's name" in bad.stderr
    assert "give OWNER/NAME" in bad.stderr
    assert hub.asked == []
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    alone = call("push", folder, "someone/gun")
    assert alone.exit_code == 2
    assert "was not pushed: the hub was not reached" in alone.stderr
    assert "check the network" in alone.stderr


def test_papers_are_cited_in_letters(call: Ask) -> None:
    shown = call("methods").stdout
    assert "Cywiński" in shown
    assert "\\'" not in shown
    assert "Cywi\\'nski" in call("methods", "cite", "saeuron").stdout


def test_generate_says_which_prompts_the_model_does_not_read_to_their_end(
    call: Ask, erasers: Path, model_folder: Path, tmp_path: Path
) -> None:
    import json

    drawing = ("--model", model_folder, "--steps", 1, "--eraser", erasers / "gun", "--out", tmp_path / "a.png")
    told = call("generate", "--prompt", "a cat", "--prompt", "a cat on grass " * 80 + "gun", *drawing, "--json")
    assert told.exit_code == 0, told.output
    assert "warning: 1 of 2 prompts are longer than the" in told.stderr
    assert "“gun” is in a truncated part of a prompt" in told.stderr
    (cut,) = json.loads(told.stdout)["cut"]
    assert cut["lost"].endswith("gun")
