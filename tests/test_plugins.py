"""Plugins: installed packages that add methods, detectors and suites."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from excise.app.bench.runs import report, resume, start
from excise.bench.protocols.detectors import detector
from excise.bench.worker import Entry
from excise.cli import app
from excise.errors import ExciseError
from excise.methods import method

MODULE = """
from dataclasses import dataclass

from excise.bench.canvas.suite import Canvas
from excise.methods import none


@dataclass(frozen=True)
class Config:
    much: int = 1


class Nothing:
    name = "nothing"
    Config = Config

    def fit(self, pipe, concept, config):
        return none.METHOD.fit(pipe, concept, none.METHOD.Config())


class Dark:
    name = "dark-1"

    def flag(self, pictures, threshold):
        return [{"target": bool(picture.mean() < threshold)} for picture in pictures]


METHOD = Nothing()


def small(settings):
    return Canvas.from_json({"steps": 2, "prompts": 1, "searches": False, **settings})
"""
POINTS = """[excise.methods]
nothing = theirs:METHOD
broken = theirs_missing:METHOD
[excise.detectors]
dark = theirs:Dark
[excise.suites]
small = theirs:small
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    (tmp_path / "theirs.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "theirs", raising=False)


@pytest.mark.usefixtures("installed")
def test_a_package_brings_a_method_a_detector_and_a_suite(tmp_path: Path) -> None:
    assert Entry.parse("nothing:much=3").settings == {"much": 3}
    (dark, bright) = detector("dark").flag([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)], 9)
    assert (dark, bright) == ({"target": True}, {"target": False})
    run = start(tmp_path / "run", "small", "quick", ["nothing"], ["gun"])
    resume(run)
    measured = report(run)
    assert measured["methods"]["nothing"]["figures"]["identical"]["value"] == 1
    assert measured["methods"]["nothing"]["pictures"] == 15


@pytest.mark.usefixtures("installed")
def test_plugins_are_listed_without_being_imported() -> None:
    listed = CliRunner().invoke(app, ["methods"])
    assert "nothing (plugin)" in listed.output and "broken (plugin)" in listed.output
    rows = json.loads(CliRunner().invoke(app, ["methods", "--json"]).output)
    assert {"name": "nothing", "kind": "plugin"} in rows
    assert "theirs" not in sys.modules


@pytest.mark.usefixtures("installed")
def test_a_plugin_that_cannot_be_imported_is_named_and_harms_no_other() -> None:
    assert method("snce").name == "snce"
    with pytest.raises(ExciseError, match=r"the plugin 'broken' \(theirs_missing:METHOD\) cannot be loaded"):
        method("broken")


@pytest.mark.usefixtures("installed")
def test_what_is_unknown_is_answered_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="no method 'nothingg'; try nothing"):
        method("nothingg")
    with pytest.raises(ExciseError, match="unknown detector 'eye'; choose one of dark, nudenet"):
        detector("eye")
    with pytest.raises(ExciseError, match=r"unknown suite 'big'; choose from canvas, .*small"):
        start(tmp_path / "run", "big", "quick", [])
