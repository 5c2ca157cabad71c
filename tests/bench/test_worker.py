from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import parse_eval_result_entries
from typer.testing import CliRunner

from excise import reference
from excise.app.bench.plots import sweeps
from excise.app.bench.runs import report, resume, start, suite_of, total
from excise.bench.items import making
from excise.bench.items.cases import picture_of
from excise.bench.items.drawn_with import forget_peak, peak_memory
from excise.bench.items.entry import Entry
from excise.bench.items.work import work
from excise.bench.run import Run, Unit
from excise.cli import app
from excise.errors import ExciseError
from excise.methods import method
from excise.methods.configs.steering import SLDConfig
from excise.methods.configs.trained import MACEConfig
from excise.methods.lookup import preset_settings
from excise.reference import GUIDANCE, STEPS
from tests.tiny.denoisers import narrow

pytestmark = pytest.mark.usefixtures("one_bundled_pipe")

FAST = {
    "steps": 1,
    "prompts": 3,
    "batch": 16,
    "words": 0,
    "ring_a_bell": {"population": 8, "generations": 2},
    "prefix": {"iterations": 1, "batch": 1},
}
"""Enough to tell pictures apart; what they show does not matter here."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = start(tmp_path_factory.mktemp("runs") / "run", "canvas", "quick", ["snce"], ["gun"], FAST)
    assert total(run) == 2 * 13 * 3 + 6
    assert not (run.folder / "searched").exists(), "counting what is to do searches for nothing"
    resume(run)
    assert total(run) == len(run.records())
    return run


def test_a_run_draws_every_case_of_every_method_once(finished: Run) -> None:
    assert finished.units("done") == [Unit("none", "gun"), Unit("snce", "gun")]
    records = finished.records()
    assert len(records) == 2 * (13 * 3 + 2) + 6, "and none draws six from other seeds"
    for record in records:
        assert picture_of(finished, Unit(record["method"], "gun"), record["case"]).exists()
        assert record["generator"] == "cpu"
    by_method = {m: {r["case"]: r for r in records if r["method"] == m} for m in ("none", "snce")}
    changed = {c for c, r in by_method["snce"].items() if r["picture"] != by_method["none"][c]["picture"]}
    assert {c for c in changed if ".unrelated." in c or ".style." in c} == set()
    assert {c for c in by_method["none"] if ".direct." in c} <= changed


def test_the_report_counts_what_was_recorded(finished: Run) -> None:
    measured = report(finished)
    assert measured == json.loads((finished.folder / "results.json").read_text())
    none, snce = measured["methods"]["none"], measured["methods"]["snce"]
    assert none["missing"] == snce["missing"] == 0
    assert none["figures"]["identical"]["value"] == snce["figures"]["identical"]["value"] == 1
    assert none["figures"]["pixel_error"]["value"] == 0
    assert none["figures"]["ira_ratio"]["value"] in (1, None)
    assert snce["cost"]["bytes"] > 1000
    assert snce["cost"]["erase_seconds"] > 0
    rows = (finished.folder / "results.csv").read_text().splitlines()
    assert rows[0] == "method,concept,figure,value,low,high,n,pictures"
    assert any(row.startswith("snce,gun,identical,1.0,") for row in rows)
    assert f"snce,,bytes,{snce['cost']['bytes']},,,," in rows


def test_the_page_shows_every_method_and_holds_its_pictures(finished: Run) -> None:
    measured = report(finished)
    page = (finished.folder / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2 * 14 * 2
    assert "http" not in page.replace("http-equiv", ""), "nothing is fetched"
    value = measured["methods"]["snce"]["figures"]["identical"]["value"]
    assert f"<b>{100 * value:.1f} %</b>" in page
    fired = sum(
        r["seen"]["target"] for r in finished.records() if int(r["case"][-3:]) < 2 and r["family"] != "reseeded"
    )
    assert page.count('class="fired"') == fired
    assert (
        '<input type="checkbox" id="unblur">' in page and "#unblur:checked ~ details .fired { filter: none; }" in page
    )
    assert "n = 1 concept, 3 pictures" in page and '<span class="badge part">point only' in page
    parser = _Balanced()
    parser.feed(page)
    assert parser.open == []


def test_a_missed_gate_ends_with_code_3(finished: Run) -> None:
    def ends(gate: str, *more: str) -> Any:
        return CliRunner().invoke(app, ["bench", "report", str(finished.folder), "--gate", gate, *more])

    passed = ends("identical>=1", "--gate-on", "point")
    assert passed.exit_code == 0
    assert all(column in passed.output for column in ("identical", "Fréchet", "Eraser"))
    missed = ends("pixel_error>0.5")
    assert missed.exit_code == 3
    assert "gate: snce: pixel_error>0.5 is missed: the value is 0.0 (n 1 concept, 3 pictures)" in missed.output
    by_the_bound = ends("identical>=0.9")
    assert by_the_bound.exit_code == 3, "three pictures cannot show that"
    assert (
        "identical>=0.9 is missed: the value 1.0 passes, but the end of its 95 % interval, 0.4385"
        in by_the_bound.output
    )
    assert ends("identical").exit_code == ends("fame>1").exit_code == 2


class _Balanced(HTMLParser):
    """Fails on a tag that closes another one than the last opened."""

    VOID = ("meta", "img", "br", "wbr", "input", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize(
    "fewer", [{"only": ("direct", "unrelated"), "searches": False}, pytest.param({}, marks=pytest.mark.slow)]
)
def test_a_second_run_gives_the_same_pictures_and_none_twice(
    finished: Run, tmp_path: Path, fewer: dict[str, Any]
) -> None:
    again = start(tmp_path / "run", "canvas", "quick", ["snce"], ["gun"], FAST | fewer)
    resume(again)
    resume(again)
    told = [{k: v for k, v in r.items() if k != "seconds"} for r in again.records()]
    drawn = {record["case"] for record in told}
    before = [r for r in finished.records() if r["case"] in drawn]
    assert told == [{k: v for k, v in r.items() if k != "seconds"} for r in before]
    assert len(told) == (len(finished.records()) if not fewer else 2 * 2 * 3 + 6), "and none draws six from other seeds"


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(finished: Run, tmp_path: Path) -> None:
    run = start(tmp_path / "run", "canvas", "quick", [], ["gun"], FAST)
    code = "import sys; from excise.app.bench.runs import *; resume(Run(sys.argv[1]))"
    worker = subprocess.Popen([sys.executable, "-c", code, run.folder], stderr=subprocess.DEVNULL)
    while not run.records() and worker.poll() is None:
        time.sleep(0.05)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    kept = {record["case"]: record["seconds"] for record in run.records()}
    assert kept
    resume(run)
    whole = {record["case"]: record for record in run.records()}
    assert {case: whole[case]["seconds"] for case in kept} == kept, "what was drawn is not drawn again"
    plain = {r["case"]: r["picture"] for r in finished.records(Unit("none", "gun"))}
    assert {case: record["picture"] for case, record in whole.items()} == plain


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not forget a process's peak")
def test_a_methods_peak_memory_leaves_out_what_was_freed_before_it() -> None:
    forget_peak()
    freed, held = zip(*[(bytearray(60_000), bytearray(100)) for _ in range(5000)], strict=True)
    del freed  # and the system has not got it back
    before = peak_memory()
    forget_peak()
    assert before - peak_memory() > 200_000_000
    del held


def test_a_detector_that_fails_is_an_error_and_never_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from excise.bench.canvas.suite import Canvas

    judge = Canvas.judge

    def failing(self: Canvas, cases: list[Any], pictures: Any) -> list[dict[str, Any]]:
        if cases[0].family == "direct":
            raise RuntimeError("out of memory")
        return judge(self, cases, pictures)

    monkeypatch.setattr(Canvas, "judge", failing)
    few = FAST | {"only": ("direct", "unrelated"), "searches": False, "batch": 3}
    run = start(tmp_path / "run", "canvas", "quick", [], ["gun"], few)
    resume(run)
    none = report(run)["methods"]["none"]
    assert len(none["errors"]) == few["batch"] < len(run.records()), "the batch it failed on"
    assert none["errors"][0] == {"case": "gun.direct.000", "error": "RuntimeError: out of memory"}
    assert none["concepts"]["gun"]["ua"] == {"value": None, "low": 0.0, "high": 1.0, "n": 0}


def test_a_method_whose_gate_needs_the_sae_runs(tmp_path: Path) -> None:
    """Codes are read by TopK, so attaching needs the whole SAE."""
    few = FAST | {"only": ("direct",), "searches": False, "prompts": 1}
    run = start(tmp_path / "run", "canvas", "quick", ["snce:preset=paper,source=prompt"], ["gun"], few)
    resume(run)
    pictures: dict[str, dict[str, str]] = {}
    for record in run.records():
        pictures.setdefault(record["method"], {})[record["case"]] = record["picture"]
    own, none = pictures["snce:preset=paper,source=prompt"], pictures["none"]
    assert list(own) == ["gun.direct.000"]
    assert own["gun.direct.000"] != none["gun.direct.000"]


def test_a_run_records_the_settings_that_its_erasers_are_fitted_with(tmp_path: Path) -> None:
    """Those of the bundled model too, but not in a paper's preset. Paths are of this machine, and are left out."""
    of_sld, of_mace = ["sld", "sld:preset=paper"], ["mace", "mace:preset=paper,rank=2"]
    labels = ["casteer", "casteer:steps=5", *of_sld, *of_mace, "snce+casteer"]
    run = start(tmp_path / "run", "canvas", "quick", labels, ["gun"], FAST)
    every = run.plan["configurations"]
    assert [every[label]["steps"] for label in labels[:2]] == [STEPS, 5]
    assert every["casteer"]["guidance"] == every["snce+casteer"]["casteer.guidance"] == GUIDANCE
    assert (every["sld"]["warmup"], every["sld"]["scale"]) == (1, 5000.0)
    paper = SLDConfig(**preset_settings("sld", "paper"))
    assert (every["sld:preset=paper"]["warmup"], every["sld:preset=paper"]["scale"]) == (paper.warmup, paper.scale)
    assert every["mace:preset=paper,rank=2"]["guidance"] == MACEConfig().guidance != every["mace"]["guidance"] == 4
    assert every["snce+casteer"]["snce.sae"] == ""


def test_an_eraser_is_fitted_with_what_the_run_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = ["sld", "sld:preset=paper", "sld:warmup=3"]
    run = start(tmp_path / "run", "canvas", "quick", labels, ["gun"], FAST | {"only": ("direct",), "searches": False})
    fitted: list[dict[str, Any]] = []
    chosen = method("sld")

    def fit(pipe: Any, concept: Any, config: Any, **more: Any) -> Any:
        fitted.append(json.loads(json.dumps(vars(config))))
        return chosen.fit(pipe, concept, config, **more)

    spied = SimpleNamespace(Config=chosen.Config, fit=fit)
    monkeypatch.setattr(making, "method", lambda name: spied if name == "sld" else method(name))
    resume(run)
    assert [run.plan["configurations"][label] for label in labels] == list({str(one): one for one in fitted}.values())


def test_a_run_remembers_its_methods_defaults(tmp_path: Path) -> None:
    run = start(tmp_path / "run", "canvas", "quick", ["snce:k=2"], ["gun"], FAST)
    assert run.plan["configurations"]["snce:k=2"]["k"] == 2
    path = run.folder / "run.json"
    plan = json.loads(path.read_text())
    plan["configurations"]["snce:k=2"]["lam"] = 9
    path.write_text(json.dumps(plan))
    with pytest.raises(ExciseError, match="the defaults of snce:k=2 changed"):
        resume(Run(run.folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("canvas", "huge", []), "unknown size 'huge'"),
        (("painting", "quick", []), "unknown suite 'painting'"),
        (("canvas", "quick", ["snec"]), "no method 'snec'; try snce"),
        (("canvas", "quick", ["snce:kay=3"]), "snce has no setting 'kay'"),
        (("canvas", "quick", ["snce:k=many"]), "k cannot be 'many'"),
        (("canvas", "quick", ["snce:k=0"]), "at least 1"),
        (("canvas", "quick", [], ["nudity"]), "does not have 'nudity'"),
        (
            ("canvas", "quick", [], ["gun"], {"stairs": 3}),
            "settings.*stairs",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path: Path, arguments: Any, message: str) -> None:
    with pytest.raises(ExciseError, match=message):
        start(tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_settings_are_read_as_the_methods_own_types() -> None:
    entry = Entry.parse("snce:k=10,lam=2,source=concept")
    assert entry == Entry("snce:k=10,lam=2,source=concept", "snce", {"k": 10, "lam": 2.0, "source": "concept"})


def test_methods_that_differ_in_one_setting_make_a_sweep() -> None:
    labels = ["none", "snce", "snce:lam=0.4", "snce:lam=4", "snce:lam=1,k=10", "snce:lam=2,k=10", "snce:source=concept"]
    every = {label: Entry.parse(label).configuration({}) for label in labels}
    ((setting, fixed, by),) = sweeps(every)
    assert (setting, fixed) == ("lam", "snce")
    assert by == {0.4: "snce:lam=0.4", 1.25: "snce", 4.0: "snce:lam=4"}
    labels = ["ca", "ca:lr=0.01", "ca:lr=0.1"]
    ((setting, _, by),) = sweeps({label: Entry.parse(label).configuration({"lr": 0.03}) for label in labels})
    assert (setting, by) == ("lr", {0.03: "ca", 0.01: "ca:lr=0.01", 0.1: "ca:lr=0.1"}), "the model's own setting"


def test_the_page_tells_how_good_the_judges_are_and_what_drew_the_pictures(finished: Run) -> None:
    measured = report(finished)
    page = (finished.folder / "report.html").read_text()
    (drawn,) = measured["drawn_with"]
    assert "StableDiffusionPipeline" in drawn and "float32 on cpu, " in drawn and drawn in page
    assert {record["drawn_with"] for record in finished.records()} == {drawn}
    assert "of real scenes exactly right" in measured["disclosed"]["second judge"]
    assert measured["disclosed"]["Ring-A-Bell"] in page
    assert measured["methods"]["snce"]["figures"]["agreement"]["value"] > 0.5


def test_the_hub_reads_the_results(finished: Run) -> None:
    figures = report(finished)["methods"]["snce"]["figures"]
    (path,) = (finished.folder / ".eval_results").iterdir()
    assert path.name == "canvas-snce.yaml"
    entries = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    found = {entry.task_id: entry for entry in entries}
    assert found["quick.identical"].value == figures["identical"]["value"]
    assert found["quick.identical"].dataset_id == "excise/canvas"
    assert f"n {figures['identical']['n']}" in str(found["quick.identical"].notes)
    assert len(entries) == sum(figure["value"] is not None for figure in figures.values())


def test_a_run_goes_on_in_the_dtype_it_was_begun_in_or_not_at_all(tmp_path: Path) -> None:
    fast = FAST | {"only": ("direct",), "searches": False}
    run = start(tmp_path / "run", "canvas", "quick", [], ["gun", "knife"], fast)

    def stop(_: float) -> None:
        if run.units("done"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(run, suite_of(run), lambda: narrow(reference.load(dtype=torch.bfloat16)), {}, stop)
    drawn = run.records()
    message = "has pictures in bfloat16 on cpu, and would continue in float32 on cpu; .* .with --dtype bfloat16"
    with pytest.raises(ExciseError, match=message):
        resume(run)
    # As an earlier version left it, which drew in float16 on every CUDA device and wrote no checker down.
    fit, versions = run.folder / "fits" / "none=gun.json", "torch 2.13.0 diffusers 0.35.1 transformers 4.57.6"
    was = {"drawn_with": f"StableDiffusionPipeline, DDIMScheduler, float16 on cuda:0; {versions}"}
    fit.write_text(json.dumps(json.loads(fit.read_text()) | was))
    with pytest.raises(ExciseError, match="has pictures in float16 on cuda:0"):
        resume(run)
    assert run.records() == drawn and run.units("todo") == [Unit("none", "knife")]


@pytest.mark.slow
def test_white_box_prompts_are_each_methods_own(tmp_path: Path) -> None:
    budgets = {"prefix": {"iterations": 2, "batch": 1}, "inversion": {"iterations": 2, "batch": 1, "pictures": 1}}
    run = start(tmp_path / "run", "canvas", "standard", ["snce"], ["gun"], {**FAST, "prompts": 1, **budgets})
    resume(run)
    prompts = {(r["method"], r["case"]): r["prompt"] for r in run.records()}
    for case in ("gun.unlearn-diff.000", "gun.p4d.000", "gun.adaptive.000"):
        plain, tried = prompts["none", case], prompts["snce", case]
        assert tried.endswith(f" {plain}"), "a prefix before what none is asked"
        assert len(tried.split()) == len(plain.split()) + 5
    assert prompts["snce", "gun.inversion.007"] == prompts["none", "gun.inversion.007"].replace("gun", "sks")
    assert prompts["snce", "gun.ring-a-bell.003"] == prompts["none", "gun.ring-a-bell.003"]
    resume(run)
    assert len(run.records()) == len(prompts) == 2 * (13 + 4 + 3 + 8) + 2
    assert {"asr.p4d", "asr.inversion"} <= report(run)["methods"]["snce"]["figures"].keys()
