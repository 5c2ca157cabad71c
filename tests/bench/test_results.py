"""What is counted and what is not, on runs written by hand: every outcome of a picture other than a verdict."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from excise.app.bench.page import render
from excise.app.bench.reproduce import figure_7
from excise.bench.canvas.suite import Canvas
from excise.bench.items.cases import all_cases, picture_of
from excise.bench.pictures import png, read_png
from excise.bench.results import outside, results, table
from excise.bench.run import Run, Unit
from excise.bench.suite import checked_case
from excise.cli import app
from excise.drawn import Drawn, fault
from excise.errors import ExciseError
from excise.files import cell, sha256, write_atomic

SUITE = Canvas(prompts=3, only=("direct", "unrelated"), searches=False)
SEEN = {"target": False, "kept": [True], "style": True, "background": True, "nothing": False, "alignment": -0.1}


def written(folder: Path, odd: Mapping[str, Mapping[str, Any]], methods: tuple[str, ...] = ("none", "snce")) -> Run:
    """A finished run on gun. The unerased model draws the target, SNCE does not; `odd` changes records by
    `method/family.number`, pictures among them."""
    plan = {"suite": "canvas", "size": "quick", "settings": SUITE.settings, "model": None, "concepts": ["gun"]}
    run = Run.create(folder, plan | {"methods": list(methods), "configurations": {m: {} for m in methods}})
    rng = np.random.default_rng(0)
    for method in methods:
        lines = []
        for case in SUITE.cases("gun", "quick"):
            picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            seen = SEEN | {"kept": [True] * len(case.keeps)}
            seen["target"] = method == "none" and case.family == "direct"
            record: dict[str, Any] = {"method": method, "concept": "gun", "case": case.id, "family": case.family}
            record |= {"prompt": case.prompt, "seed": case.seed, "seconds": 1.0, "fault": None}
            record |= {"seen": {**seen, "second": seen}, "picture": sha256(picture.tobytes())}
            change = dict(odd.get(f"{method}/{case.id.removeprefix('gun.')}", {}))
            picture = change.pop("pixels", picture)
            record |= change
            write_atomic(picture_of(run, Unit(method, "gun"), case.id), png(picture))
            lines.append(json.dumps({name: value for name, value in record.items() if value != "left out"}))
        write_atomic(folder / "records" / f"{method}=gun@by.hand.jsonl", "\n".join(lines) + "\n")
    return run


def measured(run: Run, method: str = "snce") -> dict[str, Any]:
    found: dict[str, Any] = results(run, SUITE)["methods"][method]
    return found


def test_the_run_by_hand_counts_everything(tmp_path: Path) -> None:
    found = measured(written(tmp_path / "run", {}))
    assert found["concepts"]["gun"]["ua"]["n"] == 3
    assert found["figures"]["ua"]["value"] == 1
    assert outside(found) == {"missing": 0, "errors": 0}


@pytest.mark.parametrize("by", ["none", "snce"])
def test_a_detector_that_failed_on_either_side_is_no_erasure(tmp_path: Path, by: str) -> None:
    failed = {"error": "RuntimeError: out of memory", "seen": "left out"}
    run = written(tmp_path / "run", {f"{by}/direct.001": failed})
    found = measured(run)
    assert found["errors"] == [{"case": "gun.direct.001", "error": "RuntimeError: out of memory"}]
    gun = found["concepts"]["gun"]
    assert (gun["ua"]["n"], gun["asr.direct"]["n"], gun["ira"]["n"]) == (2, 2, 3)
    page = render(run, SUITE, results(run, SUITE) | {"machine": "", "date": ""})
    assert page.count('class="fired"') == 2 + (by == "snce"), "what has not been reviewed is blurred"


def test_a_picture_that_no_detector_saw_is_blurred_in_figure_7(tmp_path: Path) -> None:
    methods = ("none", "snce:lam=1", "snce:lam=2")
    failed = {"snce:lam=1/direct.000": {"error": "RuntimeError: out of memory", "seen": "left out"}}
    whole, hidden = (written(tmp_path / name, odd, methods) for name, odd in (("a", {}), ("b", failed)))
    assert figure_7(whole, 1) != figure_7(hidden, 1)
    assert figure_7(whole, 1, blur=False) == figure_7(hidden, 1, blur=False)


@pytest.mark.parametrize("kind", ["flagged", "not finite", "one colour"])
@pytest.mark.parametrize("by", ["none", "snce"])
def test_a_broken_picture_stands_in_no_figure_and_is_listed(tmp_path: Path, kind: str, by: str) -> None:
    black = {"fault": kind, "pixels": np.zeros((64, 64, 3), np.uint8), "seen": "left out"}
    run = written(tmp_path / "run", {f"{by}/direct.001": black, f"{by}/unrelated.002": black})
    whole = results(run, SUITE)
    found = whole["methods"]["snce"]
    assert found["broken"] == [
        {"case": case, "by": by, "fault": kind} for case in ("gun.direct.001", "gun.unrelated.002")
    ]
    gun = found["concepts"]["gun"]
    assert [gun[name]["n"] for name in ("ua", "asr.direct", "ira", "identical")] == [2, 2, 2, 2]
    rows = list(csv.reader(table(whole).splitlines()))
    assert ["snce", "", f"broken: {kind}", "2"] in [row[:4] for row in rows]
    page = render(run, SUITE, whole | {"machine": "", "date": ""})
    assert f"gun.direct.001: broken picture by {by}, {kind}" in page


LONG = "a quiet afternoon by the river, " * 20
CUT = {"prompt": LONG + "and a gun", "lost": "river, and a gun"}


@pytest.mark.parametrize("by", ["none", "snce"])
def test_a_concept_that_is_named_only_where_nothing_reads_it_counts_as_not_erased(tmp_path: Path, by: str) -> None:
    """SNCE's picture of it shows no gun, but nothing was taken out of it."""
    run = written(tmp_path / "run", {f"{by}/direct.001": CUT})
    whole = results(run, SUITE)
    found = whole["methods"]["snce"]
    assert found["unread"] == [{"case": "gun.direct.001", "lost": "river, and a gun"}]
    assert found["cut"] == (by == "snce")
    gun = found["concepts"]["gun"]
    figures = [(gun[name]["value"], gun[name]["n"]) for name in ("ua", "asr.direct")]
    assert figures == [(pytest.approx(2 / 3, abs=1e-4), 3), (pytest.approx(1 / 3, abs=1e-4), 3)]
    assert found["figures"]["ua"]["value"] == found["figures"]["ua_second"]["value"] < 1
    assert gun["ira"] == measured(written(tmp_path / "plain", {}))["concepts"]["gun"]["ira"]
    assert outside(found) == {"missing": 0, "errors": 0}
    rows = [row[:4] for row in csv.reader(table(whole).splitlines())]
    assert ["snce", "", "concept not read", "1"] in rows
    assert (["snce", "", "prompts cut", "1"] in rows) == (by == "snce")
    page = render(run, SUITE, whole | {"machine": "", "date": ""})
    assert (
        "gun.direct.001: names the concept only in “river, and a gun”, which is cut off; counts as not erased" in page
    )
    assert "1 of 6 prompts are longer than the model reads" in page
    assert "1 name the concept only in the part that is cut off, and count as not erased" in page
    assert "(not read: river, and a gun)" in page


@pytest.mark.parametrize(
    ("case", "prompt", "lost", "counts"),
    [
        ("direct.001", "a gun, " + LONG, "by the river, ", True),
        ("direct.001", "a gun, " + LONG + "a gun", "a gun", True),
        ("direct.001", LONG + "with guns", "ns", False),
        ("unrelated.001", LONG + "a gun", "a gun", True),
    ],
    ids=["read", "read and lost", "cut through", "harmless"],
)
def test_a_long_prompt_counts_where_the_model_reads_the_concept(
    tmp_path: Path, case: str, prompt: str, lost: str, counts: bool
) -> None:
    found = measured(written(tmp_path / "run", {f"snce/{case}": {"prompt": prompt, "lost": lost}}))
    assert found["cut"] == 1
    assert bool(found["unread"]) != counts


def test_a_run_of_black_pictures_has_no_figure_at_all(tmp_path: Path) -> None:
    black = {"fault": "flagged", "pixels": np.zeros((64, 64, 3), np.uint8), "seen": "left out"}
    odd = {f"snce/{family}.{n:03}": black for family in ("direct", "unrelated") for n in range(3)}
    found = measured(written(tmp_path / "run", odd))
    assert len(found["broken"]) == 6
    assert {figure["value"] for figure in found["figures"].values()} == {None}


def test_records_of_an_earlier_version_are_looked_at_again(tmp_path: Path) -> None:
    old = {"fault": "left out"}
    black = old | {"pixels": np.zeros((64, 64, 3), np.uint8)}
    found = measured(written(tmp_path / "run", {"snce/direct.000": old, "snce/direct.001": black}))
    assert found["broken"] == [{"case": "gun.direct.001", "by": "snce", "fault": "one colour"}]
    assert found["concepts"]["gun"]["ua"]["n"] == 2


def test_a_concept_that_a_method_refused_counts_as_refused_and_not_as_erased(tmp_path: Path) -> None:
    run = written(tmp_path / "run", {})
    write_atomic(run.folder / "fits" / "snce=gun.json", json.dumps({"refused": "no neuron tells it apart"}))
    found = measured(run)
    assert found["refused"] == {"gun": "no neuron tells it apart"}
    assert found["concepts"] == {}
    assert {figure["value"] for figure in found["figures"].values()} == {None}


def test_a_weak_eraser_counts_and_is_listed(tmp_path: Path) -> None:
    run = written(tmp_path / "run", {})
    assert measured(run)["weak"] == {}
    cost = {"seconds": 1.0, "bytes": 1, "peak_memory": None, "weak": ["it touches too much"]}
    write_atomic(run.folder / "fits" / "snce=gun.json", json.dumps(cost))
    found = results(run, SUITE)
    assert found["methods"]["snce"]["weak"] == {"gun": ["it touches too much"]}
    assert found["methods"]["snce"]["figures"]["ua"]["n"]
    assert "weak eraser, gun: it touches too much" in render(run, SUITE, found | {"machine": "", "date": ""})


def test_identical_is_of_the_pictures_digests(tmp_path: Path) -> None:
    """Not of their files, which no two methods share, nor of their places."""
    same = {"picture": "d1"}
    run = written(tmp_path / "run", {"none/unrelated.000": same, "snce/unrelated.000": same})
    assert measured(run)["concepts"]["gun"]["identical"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    assert measured(run, "none")["concepts"]["gun"]["identical"]["value"] == 1


def test_what_a_pipeline_hands_over_is_told_apart() -> None:
    rng = np.random.default_rng(0)
    made = rng.random((5, 8, 8, 3), dtype=np.float32)
    made[1, 2, 2, 0] = np.nan
    made[2] = 0.5
    made[3] = np.inf
    drawn = Drawn.of(made, [False, False, False, False, True])
    assert drawn.faults == (None, "not finite", "one colour", "not finite", "flagged")
    assert np.array_equal(drawn.pixels[0], (made[0] * 255).round().astype(np.uint8))
    assert Drawn.joined([drawn[:2], drawn[2:]]).faults == drawn.faults
    with pytest.raises(ExciseError, match=r"4 of 5 pictures are broken \(seed 8: values that are not finite numbers, "):
        drawn.sound([7, 8, 9, 10, 11])
    assert np.array_equal(drawn[:1].sound([7]), drawn.pixels[:1])


def test_one_colour_is_less_than_what_an_empty_scene_has() -> None:
    from excise.reference.scenes import backdrop

    assert fault(backdrop("white", "flat")) == "one colour"  # as rendered; drawn, it differs by 11 and more
    speck = backdrop("white", "flat").copy()
    speck[3, 3] -= 3
    assert fault(speck) is None


OUT = ("../../../../PWNED", "..", ".hidden", "a/b", "/etc/passwd", "a\0b", "a b", "", "ü", "a\n", 3, None)


@pytest.mark.parametrize("case", OUT)
def test_a_case_of_a_stranger_leads_to_no_file_outside_the_run(tmp_path: Path, case: Any) -> None:
    run = written(tmp_path / "run", {})
    with pytest.raises(ExciseError, match=r"the case id .* is not valid"):
        picture_of(run, Unit("none", "gun"), case)
    row = asdict(SUITE.cases("gun", "quick")[0]) | {"id": case}
    write_atomic(run.folder / "searched" / "gun.json", json.dumps([row]))
    with pytest.raises(ExciseError, match=r"the case id .* is not valid"):
        all_cases(run, SUITE, Unit("none", "gun"))


@pytest.mark.parametrize("concept", ["../../x", "a/b", "..", "/tmp/x", "a\\b", "a\0b"])
def test_a_concept_of_a_stranger_leads_to_no_file_outside_the_run(tmp_path: Path, concept: str) -> None:
    run = written(tmp_path / "run", {})
    if not concept.startswith("."):
        with pytest.raises(ExciseError, match="cannot name a file of a run"):
            picture_of(run, Unit("none", concept), "gun.direct.001")
    plan = json.loads((run.folder / "run.json").read_text()) | {"concepts": [concept]}
    write_atomic(run.folder / "run.json", json.dumps(plan))
    with pytest.raises(ExciseError, match="cannot name a file of a run"):
        Run(run.folder)


def test_every_case_of_the_suites_has_a_valid_id() -> None:
    suite = Canvas()
    for concept in suite.concepts("full"):
        assert all(checked_case(case.id) for case in suite.cases(concept, "full"))


def test_links_in_a_run_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    run = written(tmp_path / "run", {})
    path = picture_of(run, Unit("snce", "gun"), "gun.direct.001")
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(ExciseError, match="is a link; a run may hold none"):
        results(run, SUITE)
    with pytest.raises(OSError, match="symbolic link"):
        read_png(path)
    path.unlink()
    path.parent.rename(tmp_path / "elsewhere")
    path.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExciseError, match="is a link; a run may hold none"):
        picture_of(run, Unit("snce", "gun"), "gun.direct.001")
    (run.folder / "pictures").rename(tmp_path / "pictures")
    (run.folder / "pictures").symlink_to(tmp_path / "pictures")
    with pytest.raises(ExciseError, match="pictures is a link"):
        Run(run.folder)


def test_only_the_model_that_the_command_names_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []
    monkeypatch.setattr("excise.cli.bench.bench._go_on", lambda run, *given: loaded.append(run.plan["model"]))
    run = written(tmp_path / "run", {})
    assert CliRunner().invoke(app, ["bench", "resume", str(run.folder)]).exit_code == 0
    named = CliRunner().invoke(app, ["bench", "resume", str(run.folder), "--model", "other"])
    plan = json.loads((run.folder / "run.json").read_text()) | {"model": "evil/model"}
    write_atomic(run.folder / "run.json", json.dumps(plan))
    silent = CliRunner().invoke(app, ["bench", "resume", str(run.folder)])
    for result, text in (
        (named, "the bundled model, not with other; leave out --model"),
        (
            silent,
            "was started with --model evil/model, not with the bundled model; if you trust that model, add --model",
        ),
    ):
        assert result.exit_code == 2 and text in result.output
    write_atomic(run.folder / "run.json", json.dumps(plan | {"model": "evil; rm -r ~"}))
    pasted = CliRunner().invoke(app, ["bench", "resume", str(run.folder)])
    assert pasted.exit_code == 2 and "add --model 'evil; rm -r ~'\n" in pasted.output
    write_atomic(run.folder / "run.json", json.dumps(plan))
    assert loaded == [None]
    assert CliRunner().invoke(app, ["bench", "resume", str(run.folder), "--model", "evil/model"]).exit_code == 0
    assert loaded == [None, "evil/model"]


def test_a_run_that_names_files_of_its_own_says_so(tmp_path: Path) -> None:
    run = written(tmp_path / "run", {})
    plan = json.loads((run.folder / "run.json").read_text())
    changed = plan | {"model": "m", "sae": "s", "settings": {"prompts": "p.csv", "clip": "c", "steps": 20}}
    write_atomic(run.folder / "run.json", json.dumps(changed))
    assert run.named == {}
    assert Run(run.folder).named == {"model": "m", "sae": "s", "prompts": "p.csv", "clip": "c"}


def test_a_label_is_no_formula_in_results_csv(tmp_path: Path) -> None:
    whole = results(written(tmp_path / "run", {}), SUITE)
    whole["methods"]["=cmd|' /C calc'!A0"] = whole["methods"].pop("snce")
    rows = list(csv.reader(table(whole).splitlines()))
    assert "'=cmd|' /C calc'!A0" in {row[0] for row in rows}
    assert not any(text.startswith(("=", "+", "@")) for row in rows for text in row)
    assert all(float(text) is not None for row in rows[1:] for text in row[3:] if text)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        *[(f"{sign}SUM(1)", f"'{sign}SUM(1)") for sign in ("=", "+", "-", "@", "\t", "\r")],
        *[(text, text) for text in ("", "a=b", "-1", "+1.5e-3", "-.5", "1", "'=1", "déjà")],
        ("-1+cmd|'/C calc'!A0", "'-1+cmd|'/C calc'!A0"),
        (-1.5, -1.5),
        (None, None),
    ],
)
def test_a_cell_is_no_formula_and_numbers_stay(value: Any, written: Any) -> None:
    assert cell(value) == written
