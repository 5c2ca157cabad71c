"""Plugins: installed packages that add methods, detectors and suites."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import excise
from excise.app.bench.runs import report, resume, start
from excise.bench.items.entry import Entry
from excise.bench.protocols.detectors import detector
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


class Nameless:
    Config = Config

    def fit(self, pipe, concept, config):
        return None


class Strict(Nothing):
    name = "strict"

    def Config(self):
        raise RuntimeError("no defaults\\nhere")


def not_made():
    return 1


METHOD = Nothing()
STRICT = Strict()
NAMELESS = Nameless()


def small(settings):
    return Canvas.from_json({"steps": 2, "prompts": 1, "batch": 5, "searches": False, **settings})
"""
POINTS = """[excise.methods]
nothing = theirs:METHOD
broken = theirs_missing:METHOD
quits = theirs_quitting:METHOD
nameless = theirs:NAMELESS
other = theirs:METHOD
strict = theirs:STRICT
klass = theirs:Nothing
absent = theirs:ABSENT
snce = theirs:METHOD
a+b = theirs:METHOD
[excise.detectors]
dark = theirs:Dark
blind = theirs:not_made
[excise.suites]
small = theirs:small
large = theirs:__name__
"""
FAULTS = {
    "broken": "of theirs 1.0 (theirs_missing:METHOD) cannot be loaded: No module named 'theirs_missing'",
    "quits": "cannot be loaded: 3",
    "nameless": "is not a method: it has no name",
    "other": "calls itself 'nothing'",
    "strict": "has a Config that gives no defaults (no defaults here)",
    "klass": "is a class",
    "absent": "cannot be loaded: module 'theirs' has no attribute 'ABSENT'",
    "a+b": "has a name",
}
"""What is wrong with each malformed method."""


def put(folder: Path, name: str, points: str) -> None:
    """Install a distribution that has these entry points."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "theirs", POINTS)
    (tmp_path / "theirs.py").write_text(MODULE)
    (tmp_path / "theirs_quitting.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("theirs", "theirs_quitting"):
        monkeypatch.delitem(sys.modules, module, raising=False)


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
def test_plugins_are_listed_and_malformed_ones_left_out_with_the_reason() -> None:
    listed = CliRunner().invoke(app, ["methods"])
    assert listed.exit_code == 0
    assert "\nnothing (plugin)\n" in listed.stdout and "snce (inference)" in listed.stdout
    assert "\nsnce (plugin, left out)\n    Excise has a method called 'snce', which is used instead" in listed.stdout
    rows = {row["name"]: row for row in json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)}
    assert rows["nothing"] == {"name": "nothing", "kind": "plugin"}
    for name, fault in FAULTS.items():
        assert f"\n{name} (plugin, left out)\n    the plugin '{name}' of theirs 1.0 (" in listed.stdout
        assert fault in rows[name]["left_out"]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", [name for name in FAULTS if "+" not in name])
def test_a_malformed_plugin_is_refused_in_one_line_and_harms_no_other(name: str) -> None:
    for command in (["methods", "show", name], ["erase", "gun", "--method", name, "--out", "made"]):
        refused = CliRunner().invoke(app, command)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert refused.stderr.startswith(f"error: the plugin '{name}' of theirs 1.0 (theirs")
        assert FAULTS[name] in refused.stderr and refused.stderr.endswith("; update or uninstall theirs\n")
        assert refused.stderr.count("\n") == 1
    assert method("snce").name == "snce" and method("nothing").name == "nothing"


@pytest.mark.usefixtures("installed")
def test_two_plugins_of_one_name_are_both_named_and_left_out(tmp_path: Path) -> None:
    put(tmp_path, "others", "[excise.methods]\nnothing = theirs:METHOD\n")
    both = "others 1.0 (theirs:METHOD), theirs 1.0 (theirs:METHOD)"
    with pytest.raises(ExciseError, match=re.escape(f"several plugins are called 'nothing': {both}; uninstall all")):
        method("nothing")
    assert excise.list_methods().count("nothing") == 1 and method("snce").name == "snce"
    assert "nothing (plugin, left out)\n    several plugins" in CliRunner().invoke(app, ["methods"]).stdout


@pytest.mark.usefixtures("installed")
def test_a_malformed_detector_or_suite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match=r"'blind' of theirs 1.0 .* is not a detector"):
        detector("blind")
    with pytest.raises(ExciseError, match=r"'large' of theirs 1.0 .* is not a suite"):
        start(tmp_path / "run", "large", "quick", [])


def test_one_setting_is_shown_in_full() -> None:
    row = json.loads(CliRunner().invoke(app, ["methods", "show", "snce", "tolerance", "--json"]).stdout)
    assert (row["default"], row["paper"], row["unit"]) == (0.02, 0.0, "share")
    assert "at least 0 and at most 1" in row["takes"] and "A Single Neuron Works" in row["source"]
    shown = " ".join(CliRunner().invoke(app, ["methods", "show", "snce+esd-x", "esd-x.eta"]).stdout.split())
    for part in ("default 1.0", "paper 1.0", "takes a number", "Erasing Concepts", "--set esd-x.eta=VALUE"):
        assert part in shown
    unknown = CliRunner().invoke(app, ["methods", "show", "snce", "gat"])
    assert (unknown.exit_code, unknown.stderr) == (2, "error: snce has no setting 'gat'; did you mean gate?\n")


def test_a_dash_in_the_papers_column_is_explained() -> None:
    legend = "A - under paper: the paper states no value"
    assert legend in CliRunner().invoke(app, ["methods", "show", "esd-x"]).stdout
    assert legend not in CliRunner().invoke(app, ["methods", "show", "none"]).stdout


@pytest.mark.usefixtures("installed")
def test_what_is_unknown_is_answered_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="no method 'nothingg'; try nothing"):
        method("nothingg")
    with pytest.raises(ExciseError, match="unknown detector 'eye'; choose one of blind, dark, nudenet"):
        detector("eye")
    with pytest.raises(ExciseError, match=r"unknown suite 'big'; choose from canvas, .*small"):
        start(tmp_path / "run", "big", "quick", [])
