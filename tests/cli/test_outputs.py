"""Existing files are replaced with --force alone, and bad input is reported before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from excise.app.pairs.generation import report_path
from excise.cli import app
from excise.errors import ExciseError
from excise.files import temporary_beside
from excise.outputs import check_extra, check_figure, check_file, check_folder
from tests.cli.test_command import everything

Call = Callable[..., Any]
RESUMED = {
    "bench run", "demo", "neurons build", "neurons import", "reference train", "sae corpus", "sae import", "sae sweep",
    "sae train", "sae train-block", "sae train-text",
}  # fmt: skip
"""Commands that go on in their own folder, or never replace what they find: they take no --force."""
NAMES = {"out", "plot", "export_jsonl"}
FILES = {
    "find": ("gun", "--plot", "taken.svg"),
    "generate": ("--prompt", "a cat", "--out", "taken.png"),
    "audit": ("eraser", "--out", "taken.html"),
    "probe": ("eraser", "--out", "taken.json"),
    "pairs make": ("gun", "--out", "taken.csv"),
    "pairs generate": ("gun", "--out", "taken.csv"),
    "pairs review": ("pairs.csv", "--out", "taken.csv"),
    "neurons export": ("--out", "taken.jsonl"),
    "neurons scan": ("--neurons", "3", "--prompts", "prompts.txt", "--out", "taken.json"),
    "reproduce snce": ("--figure", "8", "--out", "taken.svg"),
    "bench convert-q16": ("prompts.p", "--out", "taken.safetensors"),
    "reference sample": ("--prompt", "a cat", "--out", "taken.png"),
    "export lora": ("eraser", "--out", "taken.safetensors"),
}
FOLDERS = {
    "erase": ("gun", "--out", "taken"),
    "harden": ("eraser", "--out", "taken"),
    "merge": ("eraser", "other", "--out", "taken"),
    "neurons browse": ("--out", "taken"),
    "sae export": ("sae", "--to", "saelens", "--out", "taken"),
}


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from excise.app.models import resolve

    monkeypatch.setattr(resolve, "load_pipeline", lambda *args, **options: pytest.fail("a model was loaded"))
    monkeypatch.chdir(tmp_path)


def why(result: Any) -> str:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    return str(line)


def test_every_command_that_writes_keeps_to_the_rule() -> None:
    writing = {
        " ".join(path): command for path, command in everything() if NAMES & {param.name for param in command.params}
    }
    assert set(writing) == {*FILES, *FOLDERS, *RESUMED}
    forced = {name for name, command in writing.items() if "force" in {param.name for param in command.params}}
    assert forced == {*FILES, *FOLDERS}
    assert isinstance(typer.main.get_command(app), typer.core.TyperGroup)


@pytest.mark.parametrize("command", FILES)
def test_a_file_that_is_there_is_kept(command: str, call: Call) -> None:
    out = Path(FILES[command][-1])
    out.write_text("mine")
    assert "there already; choose another name, or replace it with --force" in why(
        call(*command.split(), *FILES[command])
    )
    assert out.read_text() == "mine"
    out.unlink()
    out.mkdir()
    assert "is a folder; name a file" in why(call(*command.split(), *FILES[command]))
    elsewhere = [*FILES[command][:-1], f"{out}/x/{out.suffix}"]
    assert why(call(*command.split(), *elsewhere))
    assert list(Path().iterdir()) == [out]


@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_that_is_there_is_kept(command: str, call: Call) -> None:
    out = Path(FOLDERS[command][-1])
    out.mkdir()
    (out / "mine").write_text("mine")
    assert "there already; choose another folder" in why(call(*command.split(), *FOLDERS[command]))
    assert "holds other files (mine)" in why(call(*command.split(), *FOLDERS[command], "--force"))
    (out / "mine").unlink()
    out.rmdir()
    out.write_text("mine")
    assert "is a file; name a folder" in why(call(*command.split(), *FOLDERS[command]))
    assert out.read_text() == "mine"


def test_force_replaces(call: Call) -> None:
    out = Path("gun.csv")
    assert call("pairs", "make", "gun", "--n", 4, "--out", out).exit_code == 0
    first = out.read_text()
    why(call("pairs", "make", "knife", "--n", 4, "--out", out))
    assert out.read_text() == first
    assert call("pairs", "make", "knife", "--n", 4, "--out", out, "--force").exit_code == 0
    assert out.read_text() != first


@pytest.mark.parametrize("command", sorted(RESUMED - {"neurons build", "neurons import"}))
def test_a_folder_to_go_on_in_is_no_file(command: str, call: Call) -> None:
    Path("taken").write_text("mine")
    first = {"bench run": ("canvas",), "reference train": ("--work", "work"), "sae import": ("published",)}
    first["sae corpus"] = ("--prompts", "prompts.txt")
    assert "is a file; name a folder" in why(call(*command.split(), *first.get(command, ()), "--out", "taken"))
    assert [path.name for path in Path().iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("find", "gun", "--score", "nope"), "score cannot be 'nope'; it is one of snce"),
        (("erase", "gun", "--score", "nope", "--out", "e"), "score cannot be 'nope'; it is one of snce"),
        (("find", "gun", "--model", "folder"), "--model needs --sae"),
        (("erase", "gun", "--model", "folder", "--prompts", "nope.txt", "--out", "e"), "nope.txt"),
        (("erase", "gun", "--sae", "nowhere", "--out", "e"), "cannot read nowhere/cfg.json"),
        (("erase", "gun", "--k", "60000", "--out", "e"), "has 2048 neurons; ask for fewer"),
        (("erase", "gun", "--neurons", "2048", "--out", "e"), "there is no neuron 2048"),
        (("erase", "gun", "--source", "concept", "--unit", "concept", "--out", "e"), "measures λ in codes"),
        (("erase", "gun", "--method", "uce", "--set", "lam=x", "--out", "e"), "uce: lam cannot be 'x'"),
        (("find", "gun", "--sweep-sites", "--model", "folder"), "needs --prompts FILE"),
        (("sae", "export", "nowhere", "--to", "saelens", "--out", "there"), "cannot read nowhere/cfg.json"),
        (("sae", "export", "nowhere", "--to", "keras", "--out", "there"), "--to cannot be 'keras'; choose saelens or"),
        (("sae", "compare", "nowhere"), "cannot read nowhere/cfg.json"),
        (("sae", "sweep", "--out", "s", "--k", "8,0"), "--k cannot be '8,0'"),
        (("sae", "sweep", "--out", "s", "--expansions", "1e9"), "--expansions cannot be '1e9'"),
        (("generate", "--prompt", "a cat", "--out", "x/.jpg"), "must end in .png"),
        (("generate", "--prompt", " "), "a prompt is empty"),
        (("erase", "gun", "--out", "."), "it has no name of its own; name a folder, such as name"),
        (("neurons", "browse", "--out", "."), "it has no name of its own"),
        (("sae", "train-block", "--out", "."), "it has no name of its own"),
        (("pairs", "review", "."), ". is a folder; name a file of pairs"),
        (("reproduce", "snce", "--figure", "8", "--out", "x.gif"), "must end in .svg, .png or .pdf"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(args: tuple[str, ...], says: str, call: Call) -> None:
    assert says in why(call(*args))
    assert list(Path().iterdir()) == []


def test_a_report_of_generated_pairs_is_not_overwritten(call: Call) -> None:
    report = report_path(Path("gun.csv"))
    report.write_text("mine")
    assert f"{report} is there already" in why(call("pairs", "generate", "gun", "--out", "gun.csv"))
    assert report.read_text() == "mine"


def test_what_a_killed_write_left_does_not_take_the_folder() -> None:
    Path("out").mkdir()
    temporary_beside(Path("out/eraser.json")).write_text("half")
    check_folder(Path("out"), own=())
    Path("out/notes.txt").write_text("mine")
    with pytest.raises(ExciseError, match="out is there already"):
        check_folder(Path("out"), own=())


def test_a_place_that_cannot_be_written_and_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("mine")
    with pytest.raises(ExciseError, match="file is not a writable folder"):
        check_file(Path("file/gun.csv"), (".csv",))
    with pytest.raises(ExciseError, match="file is not a writable folder"):
        check_folder(Path("file/eraser"), own=())
    with pytest.raises(ExciseError, match=r"pip install 'excise\[plot\]'"):
        check_extra("a_package_that_is_not_there", "plot", "--plot")
    monkeypatch.setattr("excise.outputs.find_spec", lambda name: None)
    with pytest.raises(ExciseError, match="--plot needs matplotlib, which is not installed"):
        check_figure(Path("gun.svg"), option="--plot")


def test_a_models_card_is_replaced_with_force_alone(call: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    refused = call("reference", "evaluate", "--write-card", tmp_path)
    assert refused.exit_code == 2 and "README.md is there already; replace it with --force" in refused.stderr
    assert (tmp_path / "README.md").read_text() == "mine"
