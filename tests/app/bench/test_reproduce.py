from __future__ import annotations

import io
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from excise.app.bench.fid import fid, gather
from excise.app.bench.reproduce import figure_7
from excise.app.bench.runs import resume, start
from excise.app.pages.lettering import Lettering
from excise.app.pages.sheet import GAP, HEADING, MARGIN
from excise.bench.items.cases import picture_of
from excise.bench.pictures import png, read
from excise.bench.run import Run, Unit
from excise.cli import app
from excise.errors import ExciseError
from excise.files import write_atomic

pytestmark = pytest.mark.usefixtures("one_bundled_pipe")

SMALL = {"steps": 2, "prompts": 1, "searches": False, "batch": 2, "only": ("direct", "unrelated")}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Run:
    methods = ["snce:lam=0.4", "snce:lam=4", "snce:lam=4,k=10"]
    run = start(tmp_path_factory.mktemp("runs") / "run", "canvas", "quick", methods, ["gun"], SMALL)
    resume(run)
    return run


def test_figure_7_has_a_column_a_strength_and_a_row_a_prompt_and_k(swept: Run) -> None:
    sheet = np.asarray(Image.open(io.BytesIO(figure_7(swept, blur=False))))
    shown = [
        np.asarray(Image.fromarray(read(path)).resize((128, 128), Image.Resampling.LANCZOS))
        for label in ("none", "snce:lam=0.4", "snce:lam=4")
        if (path := picture_of(swept, Unit(label, "gun"), "gun.direct.000"))
    ]
    head = Lettering(HEADING).line + 4
    top = MARGIN + head
    for column, picture in enumerate(shown):
        left = MARGIN + column * (128 + GAP)
        assert np.array_equal(sheet[top : top + 128, left : left + 128], picture)
    assert sheet.shape[0] == 2 * MARGIN + 2 * (128 + head) + GAP, "a prompt for k = 1 and one for k = 10"


def test_figure_7_takes_the_papers_preset(swept: Run, tmp_path: Path) -> None:
    methods = ["snce:preset=paper,lam=0.4", "snce:preset=paper"]
    shown = SMALL | {"only": ("direct",), "batch": 1}
    run = start(tmp_path / "run", "canvas", "quick", methods, ["gun"], shown)
    resume(run)
    sheet = np.asarray(Image.open(io.BytesIO(figure_7(run))))
    assert sheet.shape[1] == 2 * MARGIN + 3 * 128 + 2 * GAP, "none and both strengths"


def test_what_was_seen_is_blurred(swept: Run) -> None:
    fired = [r["seen"]["target"] for r in swept.records() if ".direct." in r["case"]]
    plain, blurred = (figure_7(swept, blur=blur) for blur in (False, True))
    assert (plain == blurred) == (not any(fired))


def test_figure_7_needs_a_run_that_varies_the_strength(tmp_path: Path) -> None:
    run = start(tmp_path / "run", "canvas", "quick", ["snce"], ["gun"], SMALL)
    with pytest.raises(ExciseError, match="does not vary λ"):
        figure_7(run)


def test_the_command_draws_figures(swept: Run, tmp_path: Path) -> None:
    runner = CliRunner()
    for figure, name in ((3, "3.svg"), (8, "8.png")):
        options = ["--figure", str(figure), "--concept", "gun", "--out", str(tmp_path / name)]
        assert runner.invoke(app, ["reproduce", "snce", *options]).exit_code == 0
    assert (tmp_path / "3.svg").read_text().startswith("<?xml")
    Image.open(tmp_path / "8.png").verify()
    done = runner.invoke(
        app, ["reproduce", "snce", "--figure", "7", "--run", str(swept.folder), "--out", str(tmp_path / "7.png")]
    )
    assert done.exit_code == 0
    assert (tmp_path / "7.png").read_bytes() == figure_7(swept)
    for options in ([], ["--table", "1", "--figure", "3"], ["--figure", "5"], ["--figure", "7"]):
        assert runner.invoke(app, ["reproduce", "snce", *options]).exit_code == 2


def test_a_methods_pictures_are_gathered_for_a_distance(swept: Run, tmp_path: Path) -> None:
    assert gather(swept, "snce:lam=4", tmp_path / "own") == 2
    path = tmp_path / "own" / "gun.gun.direct.000.png"
    assert np.array_equal(read(path.resolve()), read(picture_of(swept, Unit("snce:lam=4", "gun"), "gun.direct.000")))
    with pytest.raises(ExciseError, match="no method 'esd'; it has none, snce"):
        fid(swept, "esd")
    with pytest.raises(ExciseError, match=r"snce:lam=4 of .*: 2 pictures; KID needs 50 and FID 2,048 in each set"):
        fid(swept, "snce:lam=4")


def by_hand(folder: Path, n: int) -> Run:
    """A run with `n` pictures for each method, plus one that is broken and one that was never written."""
    rng = np.random.default_rng(0)
    plan = {"suite": "coco", "methods": ["none", "snce"], "concepts": ["gun"]}
    run = Run.create(folder, plan)
    for method in plan["methods"]:
        records = [{"method": method, "concept": "gun", "case": f"coco.{i:05}", "fault": None} for i in range(n + 2)]
        records[0]["fault"] = "flagged"
        for record in records[:-1]:
            picture = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            write_atomic(picture_of(run, Unit(method, "gun"), str(record["case"])), png(picture))
        lines = "".join(json.dumps(record) + "\n" for record in records)
        write_atomic(folder / "records" / f"{method}=gun@by.hand.jsonl", lines)
    return run


def test_no_fid_is_given_of_few_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = by_hand(tmp_path / "run", 50)
    if find_spec("torch_fidelity") is None:
        with pytest.raises(ExciseError, match=r"pip install 'excise\[fid\]'"):
            fid(run, "snce")
    for other, message in ((tmp_path / "photographs", "is not a folder"), (tmp_path, "0 pictures; KID needs 50")):
        with pytest.raises(ExciseError, match=message):
            fid(run, "snce", other)
    asked: list[dict[str, Any]] = []

    class FakeFidelity:  # for torch-fidelity, which installs torchvision: only the arguments are checked
        @staticmethod
        def calculate_metrics(**options: Any) -> dict[str, float]:
            asked.append(options | {"files": len(list(Path(options["input1"]).iterdir()))})
            return {"frechet_inception_distance": 9.0, "kernel_inception_distance_mean": 0.1}

    monkeypatch.setitem(sys.modules, "torch_fidelity", FakeFidelity)
    found = fid(run, "snce")
    assert (found["fid"], found["kid"], found["pictures"], found["others"]) == (None, 0.1, 50, 50)
    assert (asked[0]["fid"], asked[0]["kid_subset_size"], asked[0]["files"]) == (False, 50, 50)
    shown = CliRunner().invoke(app, ["bench", "fid", str(run.folder), "--method", "snce"]).output
    assert "FID none (under 2,048 pictures a side), KID 0.10000, n 50 and 50" in shown
    monkeypatch.setattr("excise.app.bench.fid.LEAST", 50)
    assert fid(run, "snce")["fid"] == 9.0
