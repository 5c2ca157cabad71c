"""Every page of figures is what its script makes of its file, and says where the figures come from."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from excise.app.bench.provenance import NOT_RECORDED, commit, folder_digest, in_words, provenance
from excise.bench.canvas.from_concepts import figures
from excise.files import sha256
from tests.test_house import ROOT

RESULTS = ROOT / "docs" / "results"
SCRIPTS = {"snce": "figures.snce_figures", "reproduced": "figures.reproduce_cells", "scale": "speed.scale_page"}
"""Scripts in benchmarks that are not benchmarks/figures/PAGE.py. The page `scale` is still to be measured."""
PER_PART = {
    "peers": "by part, under `origins`",
    "frozen": "by method, with its commit",
}
"""Pages whose file has its origin elsewhere, or none."""
PAGES = sorted(path.stem for path in RESULTS.glob("*.md"))


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_its_script_makes_of_its_file(name: str) -> None:
    script, results = import_module(f"benchmarks.{SCRIPTS.get(name, f'figures.{name}')}"), read(name)
    made = script.page(results, results["rows"]) if name == "several_concepts" else script.page(results)
    assert made == (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def test_the_page_of_performance_is_made_of_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    script = import_module("benchmarks.speed.performance_page")
    assert script.page() == Path(script.PAGE).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in PAGES if name not in PER_PART])
def test_a_page_names_commit_and_digests_or_says_that_they_are_missing(name: str) -> None:
    results, page = read(name), (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    if "commit" not in results:
        assert NOT_RECORDED in page
        return
    assert {"command", "commit", "machine", "date", "model", "saes", "settings"} <= set(results)
    assert in_words(results) in " ".join(page.split())


@pytest.mark.parametrize("precision", ["float32", "methods"])
def test_the_frozen_figures_follow_from_those_by_concept(precision: str) -> None:
    """In float32, a run of all concepts computed the figures from its pictures."""
    methods = read("frozen")[precision]
    for name in methods:
        made = figures(methods[name]["concepts"], methods["none"]["concepts"])
        assert {"ua", "ira_ratio", "asr", "asr.inversion"} <= set(made)
        assert made == {key: methods[name]["figures"][key] for key in made}


def test_a_method_on_some_of_the_frozen_concepts_is_compared_on_those() -> None:
    frozen, results = import_module("benchmarks.figures.frozen"), read("frozen")
    whole = {name: results["float32"][name] for name in ("none", "snce")}
    some = {name: whole["snce"]["concepts"][name] for name in frozen.ORDER[:3]}
    results |= {"methods": {**whole, "uce": {**whole["snce"], "concepts": some}}, "float32": {}}
    page = frozen.page(results)
    assert "## On all 16 concepts" in page and "## Both precisions" not in page
    assert "## SNCE and its peers, on 3 of 16 concepts" in page and "In float32: bomb, strawberry, trumpet." in page
    first, second = page.split("## SNCE and its peers")
    assert "| uce | 100.0" not in first and "| uce | 100.0 (86.2 to 100.0), 24 |" in second


def test_concepts_of_another_commit_name_it() -> None:
    made = provenance("python x.py", []) | {"commits": {"gun": "a" * 40, "cat": "b" * 40 + ", changed"}}
    assert "commit aaaaaaaaaaaa, commit bbbbbbbbbbbb (changed)" in in_words(made | {"commit": "a" * 40})


def test_an_origin_is_complete() -> None:
    made = provenance("python x.py", ["snce", "uce"])
    assert made == json.loads(json.dumps(made))
    assert in_words(made).startswith(f"`python x.py`, {made['date']}, {made['machine']}, commit {made['commit'][:12]}")
    assert set(made["model"]) == {"bundled"} and set(made["saes"]) == {"snce"}
    assert made["settings"]["snce"]["lam"] == 1.25 and made["settings"]["snce"]["sae"] == "sae"
    assert made["settings"]["uce"]["guide"] == "thing", "as on the bundled model"
    assert commit() == made["commit"]
    assert in_words({"date": "2026-11-01", "machine": "m"}, "python x.py") == (
        f"`python x.py`, 2026-11-01, m ({NOT_RECORDED})"
    )


def test_digests_follow_the_files(tmp_path: Path) -> None:
    import torch

    (tmp_path / "unet").mkdir()
    (tmp_path / "sae").mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "unet" / "a.safetensors")
    (tmp_path / "unet" / "config.json").write_text("{}")
    before = folder_digest(tmp_path)
    save_file({"w": torch.zeros(2)}, tmp_path / "sae" / "sae.safetensors")
    assert folder_digest(tmp_path) == before, "an SAE has a digest of its own"
    own = provenance("x", bundled=False, mine=tmp_path / "sae")
    assert own["saes"] == {"mine": sha256(tmp_path / "sae" / "sae.safetensors")}
    assert own["model"] == {}
    save_file({"w": torch.zeros(2)}, tmp_path / "unet" / "a.safetensors")
    changed = folder_digest(tmp_path)
    (tmp_path / "unet" / "config.json").write_text('{"a": 1}')
    assert len({before, changed, folder_digest(tmp_path)}) == 3
