"""A run in which a method refuses a concept, and a detector fails on one side alone: what the report says of it."""

from __future__ import annotations

import csv
import json
import shutil
from typing import Any

import pytest
from typer.testing import CliRunner

from excise.app.bench.runs import bundled_settings, report, resume, start
from excise.bench.canvas.suite import Canvas
from excise.bench.run import Run, Unit
from excise.cli import app

pytestmark = pytest.mark.usefixtures("one_bundled_pipe")

FEW = {"steps": 2, "prompts": 3, "searches": False, "only": ("direct", "unrelated"), "batch": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Gun and cat, with an SAE that was not supervised for cat. The judge fails on the erased picture of one gun."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(bundled_settings()["saemnesia-text"]["sae"], folder / "sae")
    config = json.loads((folder / "sae" / "cfg.json").read_text(encoding="utf-8"))
    known = config["card"]["supervision"]["concepts"]
    known[known.index("cat")] = "mouse"
    (folder / "sae" / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    methods = [f"saemnesia-text:sae={folder / 'sae'}"]
    made = start(folder / "run", "canvas", "quick", methods, ["gun", "cat"], FEW)
    judge, seen = Canvas.judge, []

    def failing(self: Canvas, cases: list[Any], pictures: Any) -> list[dict[str, Any]]:
        seen.append(cases[0].id)
        if cases[0].id == "gun.direct.000" and seen.count("gun.direct.000") == 2:
            raise RuntimeError("out of memory")
        return judge(self, cases, pictures)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Canvas, "judge", failing)
        resume(made)
    return made


def test_what_was_refused_and_what_failed_enters_no_figure(run: Run) -> None:
    assert not run.units("failed"), "a refusal is a result, not a failed unit"
    methods = report(run)["methods"]
    none, (label, found) = methods["none"], next(one for one in methods.items() if one[0] != "none")
    assert set(found["refused"]) == {"cat"}
    assert "was not supervised for 'cat'" in found["refused"]["cat"]
    assert (found["pictures"], found["missing"]) == (6, 0)
    assert set(found["concepts"]) == {"gun"}, "neither erased nor kept"
    assert found["errors"] == [{"case": "gun.direct.000", "error": "RuntimeError: out of memory"}]
    assert none["errors"] == [], "the unerased picture was judged"
    for name, own, plain in (("ua", 2, 3), ("identical", 3, 3)):
        assert found["concepts"]["gun"][name]["n"] == own
        assert [none["concepts"][concept][name]["n"] for concept in ("gun", "cat")] == [plain, plain]
        assert (found["figures"][name]["n"], found["figures"][name]["pictures"]) == (1, own)
    (record,) = [r for r in run.records(Unit(label, "gun")) if r["case"] == "gun.direct.000"]
    assert "seen" not in record
    assert record["error"] == "RuntimeError: out of memory"


def test_every_form_of_the_report_says_so(run: Run) -> None:
    shown = CliRunner().invoke(app, ["bench", "report", str(run.folder)])
    assert shown.exit_code == 0, shown.output
    text = "".join(shown.output.split())
    assert "leftoutofthefigures:errors1,conceptsrefused1" in text
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "gun.direct.000: RuntimeError: out of memory" in page
    assert "refused cat: " in page
    rows = csv.reader((run.folder / "results.csv").read_text(encoding="utf-8").splitlines())
    counts = {(label == "none", figure): value for label, _, figure, value, *_ in rows}
    assert (counts[True, "errors"], counts[False, "errors"]) == ("0", "1")
    assert (counts[True, "concepts refused"], counts[False, "concepts refused"]) == ("0", "1")


def test_a_gate_says_that_a_concept_was_refused(run: Run) -> None:
    """A method that gives up on hard concepts must not pass on the easy ones."""
    done = CliRunner().invoke(app, ["bench", "report", str(run.folder), "--gate", "ua>=0", "--gate-on", "point"])
    assert done.exit_code == 3
    assert "refused 1 of 2 concepts (cat)" in " ".join(done.output.split())
