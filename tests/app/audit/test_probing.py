from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import excise
from excise import reference
from excise.app.audit.probing import batches, probe
from excise.bench.probes.suite import Probes
from excise.cli import app
from excise.errors import ExciseError

SUITE = Probes(steps=8, prompts=2, only=("inversion-empty", "img2img"), batch=2)


@pytest.mark.usefixtures("one_bundled_pipe")
def test_an_eraser_of_text_changes_img2img_and_not_what_is_drawn_without_a_prompt(tmp_path: Path) -> None:
    pipe = reference.load()
    eraser = excise.erase(pipe, SUITE.concept("gun"))
    told: list[float] = []
    found = {row.probe: row for row in probe(eraser, pipe, SUITE, "gun", told.append)}
    assert len(told) == 2 * len(batches(SUITE, "gun")) == 6
    with_prompt, without = found["img2img"].still, found["inversion-empty"].still
    assert with_prompt is not None and without is not None
    assert with_prompt.value == 0 and without.value == 1 and without.n == found["inversion-empty"].unerased.n == 2

    eraser.save(tmp_path / "gun")
    out = tmp_path / "probes.json"
    asked = ["probe", str(tmp_path / "gun"), "--probes", "img2img", "--n", "2", "--steps", "8", "--out", str(out)]
    shown = CliRunner().invoke(app, [*asked])
    assert shown.exit_code == 0, shown.output
    assert "img2img" in shown.output and "inversion" not in shown.output
    written = json.loads(out.read_text())
    assert written["digest"] == eraser.digest and written["concept"] == "gun" and written["prompts"] == 2
    (row,) = written["probes"]
    assert row["still"]["value"] == 0 and row["unerased"]["value"] == 1


def test_a_concept_that_the_bundled_model_does_not_know_is_refused() -> None:
    with pytest.raises(ExciseError, match="does not have 'submarine'"):
        batches(SUITE, "submarine")
    with pytest.raises(ExciseError, match="leakage needs an object next to another one, and 'ink' is a style"):
        batches(Probes(only=("leakage",)), "ink")
