"""Snippets in README.md and docs/ are real: Python runs, commands parse, links resolve."""

from __future__ import annotations

import os
import re
import shutil
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.documented import FENCE, PAGES, ROOT, Command, blocks, commands, parses


@pytest.fixture(autouse=True)
def nothing_but_the_package(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set an empty home, and hide the data of Debian's packages."""
    from excise.app.training import corpora
    from excise.reference.training import text_corpus

    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "hub"))
    monkeypatch.setattr(text_corpus, "WORDNET", home / "wordnet")
    monkeypatch.setattr(corpora, "SHARE", home)


def params(kind: str) -> list[Any]:
    return [pytest.param(body, id=name) for name, body in blocks(kind)]


@pytest.mark.parametrize("code", params("python"))
def test_python_snippets_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "snippet", ModuleType("snippet"))  # dataclasses look their module up
    exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})


@pytest.fixture(scope="module")
def gun_folder(one_bundled_pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that `excise erase gun --out gun-eraser` makes."""
    from typer.testing import CliRunner

    from excise.cli import app

    folder = tmp_path_factory.mktemp("docs") / "gun-eraser"
    made = CliRunner().invoke(app, ["erase", "gun", "--out", str(folder)])
    assert made.exit_code == 0, made.output
    return folder


@pytest.mark.parametrize("code", params("python model"))
def test_snippets_that_need_the_bundled_model_run(
    code: str, gun_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import excise
    from excise import reference

    monkeypatch.chdir(tmp_path)
    shutil.copytree(gun_folder, "gun-eraser")
    try:
        exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})
    finally:
        excise.unload_eraser(reference.load())  # the others share the pipeline


@pytest.mark.parametrize("code", params("python compel"))
def test_snippets_that_need_a_prompt_weighting_run(
    code: str, gun_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("compel")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*name what eraser")
        test_snippets_that_need_the_bundled_model_run(code, gun_folder, tmp_path, monkeypatch)


def run_on_rank(mesh: Any, code: str, folder: Path) -> None:
    os.chdir(folder)
    exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("code", params("python ranks"))
def test_snippets_for_several_processes_run(code: str, tmp_path: Path) -> None:
    from tests.sae.ranks import on_ranks

    on_ranks((1, 2), run_on_rank, tmp_path / "store", code, tmp_path)
    assert (tmp_path / "sae" / "cfg.json").exists()


@pytest.mark.parametrize("code", params("python hub"))
def test_snippets_that_need_a_hub_run_against_one_of_our_own(
    code: str, hub: Any, gun_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_snippets_that_need_the_bundled_model_run(code, gun_folder, tmp_path, monkeypatch)
    assert hub.repositories


@pytest.mark.parametrize("code", params("python served"))
def test_snippets_that_need_the_service_run(
    code: str, gun_folder: Path, one_bundled_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from excise.app.serve.engine import Engine
    from tests.app.serve.running import serving

    monkeypatch.chdir(tmp_path)
    shutil.copytree(gun_folder, "gun-eraser")
    page = (ROOT / "docs" / "how-to" / "http-service.md").read_text(encoding="utf-8")
    (policy,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    Path("policy.yaml").write_text(policy, encoding="utf-8")
    engine = Engine(lambda: one_bundled_pipe, Path("policy.yaml"), steps=20, guidance=None)
    engine.submit(engine.start).result()
    with serving(engine) as client:
        address = str(client.base_url).rstrip("/")
        exec(compile(code.replace("http://127.0.0.1:8000", address), "snippet", "exec"), {"__name__": "snippet"})
    assert engine.served is not None
    for attachment in engine.served.attachments.values():
        attachment.detach()
    assert Path("picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", commands(), ids=str)
def test_documented_commands_parse(command: Command) -> None:
    """Every option in the docs exists; in a complete command its value is of the right kind."""
    assert parses(command) or not command.fenced or command.words == (), command


def test_links_between_pages_resolve() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_licence_file_that_is_declared_is_there() -> None:
    for folder, count in ((ROOT, 1), (ROOT / "reference", 3)):
        project = (folder / "pyproject.toml").read_text(encoding="utf-8")
        listed = re.search(r"^license-files = \[(.*?)\]", project, re.MULTILINE | re.DOTALL)
        assert listed is not None
        names = re.findall('"([^"]+)"', listed[1])
        assert len(names) >= count
        for name in names:
            assert (folder / name).is_file(), name


def test_the_readme_shows_both_commands_first() -> None:
    first = FENCE.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert first is not None
    assert "make demo" in first["body"]
    assert "make test" in first["body"]


def test_the_readme_says_how_to_uninstall_and_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from excise.app.training.sae_cache import cache_folder

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "pip uninstall excise excise-reference" in text and "-c constraints.txt" in text
    for variable in ("EXCISE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert f"`~/{cache_folder().relative_to(Path.home())}` (`$EXCISE_CACHE`" in text
    monkeypatch.setenv("EXCISE_CACHE", "elsewhere")
    assert cache_folder() == Path("elsewhere")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_readmes_figures_are_those_that_were_measured() -> None:
    """The peers are the five published methods with the highest mean of UA, IRA, CRA and mixed."""
    shown = {"SNCE (default)": "snce", "MACE": "mace", "UCE": "uce", "CASteer": "casteer", "CA": "ca", "RECE": "rece"}
    rows = _tables((ROOT / "README.md").read_text(encoding="utf-8"))
    measured = _tables((ROOT / "docs" / "results" / "peers.md").read_text(encoding="utf-8"))
    heads = [[cell.partition(" (")[0] for cell in row[1:]] for row in measured]
    (names,) = [row for row in heads if "ring-a-bell" in row and "inversion" in row]

    def values(cells: list[str]) -> list[str]:
        return [cell.partition(" ")[0] for cell in cells]

    by_kind = {row[0]: row[2:] for row in measured if row[1:2] and row[1] in ("closed form", "fine-tune", "inference")}
    by_kind = {name: values(row) for name, row in by_kind.items()}
    attacks = {row[0]: dict(zip(names, values(row[1:]), strict=True)) for row in measured if len(row) == len(names) + 1}
    for title, name in shown.items():
        (row,) = [row[1:] for row in rows if row[0] == title]
        ua, ira, cra, mixed, _, identical = by_kind[name]
        assert row == [ua, ira, cra, mixed, identical, attacks[name]["inversion"]], title
    peers = {name: sum(map(float, row[:4])) for name, row in by_kind.items() if name not in ("snce", "saemnesia-text")}
    assert set(sorted(peers, key=peers.__getitem__)[-5:]) == set(shown.values()) - {"snce"}


def _tables(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_every_bypass_has_its_test() -> None:
    text = (ROOT / "docs" / "explanation" / "threat-model.md").read_text(encoding="utf-8")
    rows = [line.rpartition("|")[0].rpartition("|")[2] for line in text.splitlines() if line.startswith("|")]
    bypasses = [name for row in rows for name in re.findall(r"`(test_\w+)`", row)]
    files = (ROOT / "tests").rglob("test_*.py")
    written = [name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)]
    assert len(bypasses) > 80
    assert set(bypasses) <= set(written)


def test_every_method_has_its_line_in_the_docs() -> None:
    from excise.methods import METHODS

    page = (ROOT / "docs" / "reference" / "methods.md").read_text(encoding="utf-8")
    assert [name for name in METHODS if f"`{name}`" not in page] == []


def test_the_documented_sweep_runs_with_nothing_but_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the command of docs/how-to/neurons.md with a small grid."""
    from typer.testing import CliRunner

    from excise.cli import app

    (words,) = [list(command.words) for command in commands() if command.words[:2] == ("sae", "sweep")]
    monkeypatch.chdir(tmp_path)
    small = {"--sites": "encoder.layers.3", "--expansions": "4", "--k": "8", "--concepts": "gun"}
    for option, value in small.items():
        words[words.index(option) + 1] = value
    done = CliRunner().invoke(app, [*words, "--tokens", "3000", "--most", "40", "--n", "12"])
    assert done.exit_code == 0, done.output


def test_training_text_without_wordnet_takes_the_captions_alone() -> None:
    from excise.app.training.labelled import english

    assert english() == []


def test_every_exit_code_is_in_the_help_and_in_the_docs() -> None:
    from typer.testing import CliRunner

    from excise.cli import app

    shown = " ".join(CliRunner().invoke(app, ["--help"]).output.replace("│", " ").split())
    page = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    ends = re.findall(r"Exit\((\d+)\)", "".join(p.read_text() for p in (ROOT / "excise" / "cli").rglob("*.py")))
    from excise.cli import command

    for code in {0, *map(int, ends), command.NOT_PASSED, command.BAD_INPUT, command.INTERRUPTED}:
        assert f"| {code} |" in page
        assert re.search(rf"\b{code} \w", shown.partition("Exit codes:")[2]), code
