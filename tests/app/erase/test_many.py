"""Erasers made side by side: one task that fails ends no other, and processes share the cards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from excise.app.erase import many
from excise.app.erase.many import Task, erase_all
from excise.app.models import loader
from excise.errors import ExciseError


def test_a_task_that_fails_in_an_unforeseen_way_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def erase(pipe: Any, concept: Any, method: str, settings: Any, out: Path, **how: Any) -> Any:
        if concept.name == "gun":
            raise RuntimeError("CUDA error:\nout of memory")
        out.mkdir()
        (out / "manifest.json").write_bytes(b"123")
        return SimpleNamespace(weak=())

    monkeypatch.setattr(many, "erase_by", erase)
    monkeypatch.setattr(loader, "load_pipeline", lambda *named: None)
    tasks = [Task(name, "uce", str(tmp_path / name)) for name in ("gun", "cat")]
    gun, cat = erase_all(tasks, None, failures=tmp_path / "failures")
    assert json.loads((tmp_path / "failures" / "gun.json").read_text())["error"] == "RuntimeError"
    assert (gun.state, gun.why) == ("failed", "failed with RuntimeError: CUDA error: out of memory")
    assert (cat.state, cat.bytes) == ("made", 3)


def test_every_worker_of_several_loads_the_model_onto_its_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(engine: Any, stage: Any, tasks: Any, **options: Any) -> Iterator[Any]:
        asked.append((stage.load.device, options["needs"].gpus))
        yield from ()

    monkeypatch.setattr(many, "run", run)
    for device in ("cuda", "cuda:1", "cpu"):
        erase_all([], None, device)
    assert asked == [("cuda", 1), ("cuda:1", 0), ("cpu", 0)], "tests/engine shows that each worker sees its own"


def test_too_few_pairs_are_refused_before_the_fit_and_only_for_snce(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun = []

    def fitted(pipe: object, concept: object, name: str, *rest: object, **more: object) -> None:
        begun.append(name)
        raise ExciseError("enough")

    monkeypatch.setattr(loader, "load_pipeline", lambda *which: None)
    monkeypatch.setattr(many, "erase_by", fitted)
    tasks = [Task("gun", by, str(tmp_path / by), (), n=4) for by in ("snce", "uce", "uce+snce")]
    done = erase_all([*tasks, Task("gun", "snce", str(tmp_path / "weak"), (), n=4, accept_weak=True)], None)
    assert begun == ["uce", "snce"]
    assert [d.state for d in done] == ["weak", "refused", "weak", "refused"]
    assert "only 4 pairs" in done[0].why
