"""The profile of each method: from a run of probes, or one joined to a run of Canvas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from excise.app.bench.profile import FIGURES, joined, lines, profile
from excise.bench.probes.probes import PROBES
from excise.bench.run import Run
from excise.cli import app
from excise.errors import ExciseError
from excise.statistics import wilson

SMALL = ("--methods", "uce", "--concepts", "gun", "--n", "2", "--steps", "4")


def invoked(*words: str, code: int = 0) -> str:
    told = CliRunner().invoke(app, ["bench", *words])
    assert told.exit_code == code, told.output
    return " ".join(told.output.split())


def probes_of(hits: int = 1, missing: int = 0) -> dict[str, Any]:
    """Results of a run of probes, by hand: two methods, two probes of four prompts each."""
    share, none = wilson(hits, 4).to_json(), wilson(0, 0).to_json()
    figures = {"asr.noise": share, "leaked.leakage": wilson(0, 4).to_json(), "asr.img2img": none, "asr": share}
    methods = {label: {"figures": figures, "missing": missing} for label in ("none", "snce", "uce")}
    return {"suite": "probes", "size": "quick", "concepts": ["gun"], "drawn_with": ["cpu"], "methods": methods}


def test_a_method_has_a_card_with_a_line_for_each_probe_that_was_measured() -> None:
    found = profile(probes_of())
    assert found is not None and [card.says for card in found.cards] == ["snce", "uce"]
    assert [name for name, _ in found.meanings] == ["noise", "leakage"]
    assert [(row.label, row.value) for row in found.cards[0].rows] == [("noise", "25.0 %"), ("leakage", "0.0 %")]
    assert found.cards[0].rows[0].words == "4.6 to 69.9 %, n = 4" and found.cards[0].rows[0].chart is not None
    assert found.says == "Size quick, gun; cpu." and found.cards[0].explained == ""
    unfinished = profile(probes_of(missing=3))
    assert unfinished is not None and unfinished.cards[1].explained == "3 pictures are not generated yet."
    both = profile({"suite": "canvas", "probes": probes_of() | {"run": "/p"}})
    assert both is not None and both.says == "From /p: size quick, gun; cpu." and both.cards == found.cards
    assert profile({"suite": "canvas"}) is None and profile(probes_of() | {"methods": {}}) is None


def test_lines_of_the_terminal_have_the_same_shares() -> None:
    assert lines(probes_of(2)) == (
        ["snce", "uce"],
        [
            ("noise", "50.0 (15.0 to 85.0), n 4", "50.0 (15.0 to 85.0), n 4"),
            ("leakage", "0.0 (0.0 to 49.0), n 4", "0.0 (0.0 to 49.0), n 4"),
        ],
    )
    assert lines({"suite": "canvas"}) == ([], [])


def test_every_probe_has_a_line() -> None:
    assert [*FIGURES.values()] == [*PROBES] and {"asr.noise", "leaked.leakage"} < FIGURES.keys()


@pytest.mark.usefixtures("one_bundled_pipe")
def test_a_report_of_canvas_takes_a_run_of_probes_of_the_same_methods(tmp_path: Path) -> None:
    run, probes = str(tmp_path / "run"), str(tmp_path / "probes")
    invoked("run", "canvas", *SMALL, "--families", "direct", "--out", run)
    told = invoked("run", "probes", *SMALL, "--families", "leakage,img2img", "--out", probes)
    assert "leakage" in told and "Share of prompts" not in told
    assert "What knowledge is left" in (tmp_path / "probes/report.html").read_text()
    assert "What knowledge is left" not in (tmp_path / "run/report.html").read_text()

    told = invoked("report", run, "--probes", probes)
    page, results = (tmp_path / "run" / name for name in ("report.html", "results.json"))
    found, alone = json.loads(results.read_text()), json.loads((tmp_path / "probes/results.json").read_text())
    assert "img2img" in told and f"--probes {probes}" in page.read_text()
    assert "What knowledge is left" in page.read_text() and f"From {probes}: size quick, gun" in page.read_text()
    assert found["suite"] == "canvas" and found["probes"]["methods"].keys() == {"uce"}
    assert found["probes"]["methods"]["uce"]["figures"] == alone["methods"]["uce"]["figures"]
    assert found["probes"]["concepts"] == ["gun"] and found["methods"]["uce"]["figures"].keys() >= {"ua"}


def plan(folder: Path, suite: str = "canvas", model: str | None = None, **configurations: Any) -> Run:
    """An empty run with these methods' settings."""
    content: dict[str, Any] = {"suite": suite, "size": "quick", "settings": {}, "model": model, "concepts": ["gun"]}
    return Run.create(folder, content | {"methods": list(configurations), "configurations": configurations})


def test_two_runs_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    run, probes = plan(tmp_path / "run", none={}, uce={"a": 1}), plan(tmp_path / "p", "probes", none={}, uce={"a": 1})
    found = joined(run, probes, probes_of())
    assert found["methods"] == {"uce": {"figures": probes_of()["methods"]["uce"]["figures"], "missing": 0}}
    assert found["run"] == str(tmp_path / "p") and found["suite"] == "probes" and found["concepts"] == ["gun"]

    def refused(run: Run, probes: Run) -> str:
        with pytest.raises(ExciseError) as told:
            joined(run, probes, probes_of())
        return str(told.value)

    assert refused(run, run) == f"{run.folder} is a run of canvas; --probes takes one of probes"
    odd = plan(tmp_path / "odd", "probes", none={}, uce={"a": 2})
    assert refused(run, odd) == f"uce has other settings in {odd.folder} than in {run.folder}; probe it again"
    none = plan(tmp_path / "none", "probes", none={}, snce={})
    assert refused(run, none) == f"{none.folder} has none of the methods of {run.folder}: none, snce"
    other = plan(tmp_path / "other", "i2p", "somebody/model", none={}, uce={"a": 1})
    assert refused(other, probes) == f"{other.folder} is on somebody/model, and probes are on the bundled model"
