"""The documentation site: its reference has every public name, and it builds without a broken link."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.documented import ROOT


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_docs", ROOT / "scripts" / "build_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_a_docstring_and_a_place_in_the_reference(build: ModuleType) -> None:
    import excise

    names = build.public_names()
    assert {"erase", "load_eraser", "Eraser"} <= set(names)
    assert set(names) == set(excise.__all__)
    assert build.undocumented(names) == []
    page = build.api_page(names)
    assert [name for name in names if f"heading: excise.{name}\n" not in page] == []


def test_the_python_page_has_every_name_option_and_status(build: ModuleType, tiny_pipe: Any, gun_eraser: Any) -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    assert build.names_table(build.public_names()) in page, "paste the output of names_table (scripts/build_docs.py)"
    options, status = page.partition("## Options of attaching")[2].split("## Status")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", options, re.MULTILINE))
    taken = inspect.signature(gun_eraser.attach).parameters
    assert set(rows) == set(taken) - {"pipe"}
    stated = {"name": "its own", "on_bypass": '`"raise"`'}
    for name, default in rows.items():
        assert default == stated.get(name, str(taken[name].default)) or default == f"`{taken[name].default}`", name
    with gun_eraser.attach(tiny_pipe) as attached:
        cells = "".join(re.findall(r"^\| (`.+?) \|", status, re.MULTILINE))
        assert set(re.findall(r"`(\w+)`", cells)) == set(attached.status())
        assert attached.status()["strict"] and attached.status()["on_bypass"] == "raise"


def test_a_name_without_a_docstring_is_found(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import excise

    monkeypatch.setattr(excise, "bare", lambda: None, raising=False)
    assert build.undocumented(["bare", "Eraser"]) == ["bare"]


def test_the_diagram_has_every_package_and_its_arrows(build: ModuleType) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    flowchart = page.partition("```mermaid\n")[2].partition("```")[0]
    drawn = build.svg(flowchart)
    assert "\n" not in drawn and drawn.count("<rect ") == 13 and drawn.count("<path d=") == 1 + 23
    assert "api imports app" in drawn and ">erasers</text>" in drawn and "reference imports chat" in drawn


def test_summaries_that_were_cut_short_are_completed(build: ModuleType) -> None:
    text = "* `sae`: Look...\n\n## `excise sae`\n\nLook inside.\n\n* `info`: Say...\n\n"
    text += "### `excise sae info`\n\nSay it all.\n"
    assert "* `sae`: Look inside.\n" in build.in_full(text) and "* `info`: Say it all.\n" in build.in_full(text)


@pytest.mark.slow
def test_the_site_builds_and_a_broken_link_fails(tmp_path: Path) -> None:
    if importlib.util.find_spec("zensical") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("needs the extra docs")
    for name in ("docs", "excise", "scripts", "zensical.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    command = [sys.executable, "scripts/build_docs.py"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    for page in ("index", "reference/api", "reference/cli", "tutorials/first-eraser"):
        assert (tmp_path / f"build/site/{page}.html").exists()
    assert "excise.load_eraser" in (tmp_path / "build/site/reference/api.html").read_text(encoding="utf-8")
    (tmp_path / "docs" / "index.md").write_text("# Excise\n[nowhere](nowhere.md)\n", encoding="utf-8")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode != 0
