"""`excise erase` with several erasers: its engine, and what is set aside."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from excise.app.erase import many
from excise.app.models import loader

WORDS = ("erase", "gun,cat,dog", "--method", "uce")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the concepts that fail: for the others, an empty eraser is made at once."""
    names = {"cat"}

    def erase(pipe: Any, concept: Any, method: str, settings: Any, out: Path, **how: Any) -> Any:
        if concept.name in names:
            raise RuntimeError("out of memory")
        out.mkdir(parents=True)
        (out / "manifest.json").write_text("{}")
        return SimpleNamespace(weak=())

    monkeypatch.setattr(many, "erase_by", erase)
    monkeypatch.setattr(loader, "load_pipeline", lambda *named: None)
    return names


def test_what_fails_is_set_aside_with_4_until_it_is_retried(
    call: Callable[..., Any], failing: set[str], tmp_path: Path
) -> None:
    words = (*WORDS, "--out", tmp_path / "erasers")
    made = call(*words)
    assert made.exit_code == 4, made.output
    assert "1 of 3 failed, the first" in made.stderr and "--retry-failed" in made.stderr
    assert "cat-uce: failed: failed with RuntimeError: out of memory" in made.stderr
    assert sorted(path.name for path in (tmp_path / "erasers").iterdir()) == ["dog-uce", "failures", "gun-uce"]
    failing.clear()
    assert call(*words).exit_code == 4
    assert not (tmp_path / "erasers" / "cat-uce").exists()
    call(*words, "--retry-failed")
    assert (tmp_path / "erasers" / "cat-uce").exists()
    assert list((tmp_path / "erasers" / "failures").iterdir()) == []


def test_two_slices_make_all_of_them(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, failing: set[str], tmp_path: Path
) -> None:
    """The second slice finds what the first one made, and what it could not make."""
    from excise.engine import engines
    from excise.engine.local import Local

    monkeypatch.setattr(engines, "Processes", lambda stage, needs, workers: Local(stage))
    monkeypatch.setenv("EXCISE_ENGINE", "slice:2")
    outputs = []
    for index in (0, 1):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(index))
        outputs.append(call(*WORDS, "--out", tmp_path / "erasers"))
    assert [output.exit_code for output in outputs] == [4, 4], "the first took over cat, which is the second's own"
    assert "1 of 3 failed" in outputs[0].stderr and "1 of 1 failed" in outputs[1].stderr
    assert "gun-uce: 0 s" in outputs[0].stderr and "gun-uce: 0 s" not in outputs[1].stderr
    assert "cat-uce: failed: " in outputs[1].stderr
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    monkeypatch.setattr(many, "_existing", lambda task: many.Done(task.concept, task.method, task.out, "kept"))
    again = call(*WORDS, "--out", tmp_path / "erasers", "--json")
    assert again.exit_code == 0, "its own are made, and the second slice speaks of cat"
    assert "cat-uce: failed in another slice: failed with RuntimeError" in again.stderr
    listed = {row["concept"]: (row["state"], row["elsewhere"]) for row in json.loads(again.stdout)}
    assert listed == {"gun": ("kept", False), "cat": ("failed", True), "dog": ("kept", False)}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--engine", "procesess"), "there is no engine 'procesess'"),
        (("--engine", "processes:2", "--jobs", "3"), "disagree"),
        (("--engine", "slice:4/4"), "slice:4/4 is not a part"),
        (("--engine", "slice:1/4", "--force"), "a slice cannot make existing files again"),
    ],
)
def test_an_impossible_engine_is_refused_before_any_work(
    call: Callable[..., Any], failing: set[str], options: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    made = call(*WORDS, "--out", tmp_path / "erasers", *options)
    assert made.exit_code == 2
    assert says in made.stderr
    assert not (tmp_path / "erasers").exists()


@pytest.mark.skipif("ray" in sys.modules, reason="another test has imported ray")
def test_without_ray_the_line_says_how_to_get_it(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, failing: set[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    made = call(*WORDS, "--out", tmp_path / "erasers", "--engine", "ray")
    assert made.exit_code == 2
    assert "pip install 'excise[ray]'" in made.stderr
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_merge(call: Callable[..., Any], gun_eraser: Any, word_sae: Any, tiny_site: Any, tmp_path: Path) -> None:
    from excise.erasers import Eraser, SAEEdit

    for name, neuron in (("gun", 5), ("cat", 11)):
        edit = SAEEdit.from_sae(word_sae, tiny_site, [neuron], gate="whole", lam=2.0)
        replace(gun_eraser, name=name, concept=name, edits=(edit,), canary_shift=0.1).save(tmp_path / "erasers" / name)
    words = ("merge", tmp_path / "erasers", "--out", tmp_path / "policy")
    made = call(*words, "--json")
    assert made.exit_code == 0, made.output
    merged = Eraser.load(tmp_path / "policy")
    told = json.loads(made.stdout)
    assert (told["concepts"], told["digest"], merged.concept) == (2, merged.digest, "cat, gun")
    assert told["bytes"] == sum(path.stat().st_size for path in (tmp_path / "policy").iterdir())
    again = call(*words)
    assert again.exit_code == 2 and "there already" in again.stderr
    assert call(*words, "--force").exit_code == 0
    assert call("verify", tmp_path / "policy", "--files-only").exit_code == 0
    unsigned = call(*words[:2], "--out", tmp_path / "other", "--key", tmp_path / "missing.pem")
    assert unsigned.exit_code == 2 and not (tmp_path / "other").exists()
    single = call("merge", tmp_path / "erasers" / "gun", "--out", tmp_path / "other")
    assert single.exit_code == 2 and "give at least two erasers to merge" in single.stderr
    gun_eraser.save(tmp_path / "relu")
    refused = call("merge", tmp_path / "policy", tmp_path / "relu", "--out", tmp_path / "other")
    assert refused.exit_code == 2 and "with gate=whole and without ortho can" in refused.stderr
    assert not (tmp_path / "other").exists()
