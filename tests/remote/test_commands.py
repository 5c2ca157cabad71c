"""`excise bench` on s3://, on the bundled model, and one line for what cannot be reached."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from excise.bench.items import blocks
from excise.bench.run import Run, Unit
from excise.cli import app


@pytest.mark.usefixtures("bucket")
def test_commands_name_a_bucket_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command, says in {
        "bench run canvas --concepts gun --out s3://nowhere/run": "cannot write s3://nowhere/run (NO_SUCH_BUCKET",
        "bench resume s3://nowhere/run": "s3://nowhere/run is not a run",
        "bench report s3://nowhere/run": "s3://nowhere/run is not a run",
        "erase gun --out s3://bucket/eraser": "--out s3://bucket/eraser: only `excise bench` works in an object store",
        "sae corpus --prompts a.txt --out s3://bucket/corpus": "only `excise bench` works in an object store",
    }.items():
        told = CliRunner().invoke(app, command.split())
        assert told.exit_code == 2, told.output
        *_, line = told.stderr.strip().splitlines()  # transformers warns when it is imported first
        assert line.startswith("error: ") and says in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("bucket", "one_bundled_pipe")
def test_the_commands_run_resume_and_report_on_machines_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "s3://bucket/canvas"
    told = invoked(f"bench run canvas --methods uce --concepts gun --n 1 --steps 1 --families leetspeak --out {url}")
    assert f"wrote {url}/report.html, results.json and results.csv" in told
    assert f"works on a copy of {url} in " in told
    first = Run(url)
    (block,) = blocks.files(first.folder, "uce=gun")
    assert first.remote is not None
    before = blocks.read_records(block)
    for path in (block, first.folder / "done" / "uce=gun"):
        first.remove(path)
    assert Run(url).units("todo") == [Unit("uce", "gun")]
    invoked(f"bench resume {url}")
    again = Run(url)
    (block,) = blocks.files(again.folder, "uce=gun")
    assert [row["picture"] for row in blocks.read_records(block)] == [row["picture"] for row in before]
    eraser = {path.name: path.read_bytes() for path in (again.folder / "erasers" / "uce=gun").iterdir()}
    assert eraser == {path.name: path.read_bytes() for path in (first.folder / "erasers" / "uce=gun").iterdir()}
    invoked(f"bench report {url}")
    assert f"excise bench report {url}" in (Run(url).folder / "report.html").read_text()
    assert list(tmp_path.iterdir()) == []


def invoked(command: str) -> str:
    told = CliRunner().invoke(app, command.split())
    assert told.exit_code == 0, told.output
    return told.output
