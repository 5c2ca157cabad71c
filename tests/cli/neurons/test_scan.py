from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from excise import reference
from excise.app.models.resolve import sae_site
from excise.app.neurons import scanning
from excise.cli import app
from excise.concepts import parts
from excise.engine import engines
from excise.engine.local import Local
from excise.methods.prompt_codes import prompt_codes
from excise.reference import sae_folder
from excise.sae import load

PROMPTS = [f"a {thing} on {place}" for thing in ("gun", "cat", "tree") for place in ("grass", "the sand", "wood")]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(parts, "ROWS", 4)
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


def scan(corpus: Path, neurons: str, *more: str) -> dict[str, Any]:
    out = corpus.with_name("scan.json")
    asked = ["neurons", "scan", "--neurons", neurons, "--prompts", str(corpus), "--out", str(out), "--json", *more]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == json.loads(out.read_text())
    return dict(found)


@pytest.mark.usefixtures("one_bundled_pipe")
def test_a_scan_of_parts_is_what_all_prompts_give_at_once(corpus: Path) -> None:
    pipe, sae = reference.load(), load(sae_folder())
    codes, _ = prompt_codes(pipe, sae, sae_site(pipe, sae_folder()), PROMPTS)
    busy = codes.indices[codes.scored].flatten().bincount(minlength=sae.config.m)
    neuron, silent = int(busy.argmax()), int(busy.argmin())
    of_neuron = (codes.values * (codes.indices == neuron)).sum(-1) * codes.scored
    peaks = of_neuron.amax(1)

    found = scan(corpus, f"{neuron},{silent}", "--top", "3")
    one, other = found["neurons"]
    assert found["prompts"] == len(PROMPTS) and found["tokens"] == int(codes.scored.sum())
    assert one["prompts"] == int((peaks > 0).sum()) and one["tokens"] == int((of_neuron > 0).sum())
    assert sum(b["prompts"] for b in one["histogram"]) == one["prompts"]
    best = peaks.topk(3)
    assert [top["peak"] for top in one["top"]] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert all(PROMPTS[top["row"]] == top["prompt"] for top in one["top"]) and other["top"] == []

    files = sorted(corpus.with_name("scan.json.parts").iterdir())
    kept = [path.stat().st_mtime_ns for path in files]
    assert len(files) == 3
    files[1].unlink()
    assert scan(corpus, f"{neuron},{silent}", "--top", "3", "--force") == found
    again = [path.stat().st_mtime_ns for path in files]
    assert [kept[0], kept[2]] == [again[0], again[2]] and kept[1] != again[1]


@pytest.mark.slow
def test_two_processes_and_two_slices_scan_the_same(corpus: Path) -> None:
    found = scan(corpus, "3,930")
    for engine in (["--engine", "processes:2"], ["--engine", "slice:0/2"], ["--engine", "slice:1/2"]):
        for path in corpus.with_name("scan.json.parts").iterdir():
            path.unlink()
        assert scan(corpus, "3,930", "--force", *engine)["neurons"] == found["neurons"]


@pytest.mark.usefixtures("one_bundled_pipe")
def test_a_slice_does_not_merge_what_another_could_not_scan(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first slice writes the scan, so it needs all of it."""
    monkeypatch.setattr(engines, "Processes", lambda stage, needs, workers: Local(stage))
    out = corpus.with_name("scan.json")
    read = scanning.read_part

    def fail_at_one(part: Any, column: str) -> Any:
        if part.number == 1:
            raise RuntimeError("cuda is on fire")
        return read(part, column)

    monkeypatch.setattr(scanning, "read_part", fail_at_one)
    asked = ["neurons", "scan", "--neurons", "3", "--prompts", str(corpus), "--out", str(out), "--json"]
    done = [CliRunner().invoke(app, [*asked, "--engine", f"slice:{part}/3"]) for part in (1, 2, 0)]
    assert [one.exit_code for one in done] == [4, 0, 4], [one.output for one in done]
    assert json.loads(done[1].stdout) == {} and "they are not merged" in " ".join(done[1].stderr.split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("neurons", "prompts", "why"),
    [
        ("gun", "prompts.txt", 'is not a list of numbers; write "930, 12"'),
        ("999999", "prompts.txt", "the SAE has no neuron 999999"),
        ("3", "gone.txt", "gone.txt does not exist; check --prompts"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(corpus: Path, neurons: str, prompts: str, why: str) -> None:
    out = corpus.with_name("scan.json")
    asked = ["neurons", "scan", "--neurons", neurons, "--prompts", str(corpus.with_name(prompts)), "--out", str(out)]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 2 and why in " ".join(done.stderr.split()) and not out.exists()
