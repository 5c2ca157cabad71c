"""Erasers made side by side: one task that fails ends no other, and processes share the cards."""

from __future__ import annotations

import queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from excise.app.erase import many
from excise.app.erase.many import Task, erase_all
from excise.app.models.pipelines import DEFAULT
from excise.errors import ExciseError


def test_a_task_that_fails_in_an_unforeseen_way_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def erase(pipe: Any, concept: Any, method: str, settings: Any, out: Path, **how: Any) -> Any:
        if concept.name == "gun":
            raise RuntimeError("CUDA error:\nout of memory")
        out.mkdir()
        (out / "weights").write_bytes(b"123")
        return SimpleNamespace(weak=())

    monkeypatch.setattr(many, "erase_by", erase)
    monkeypatch.setattr(many, "load_pipeline", lambda *named: None)
    tasks = [Task(name, "uce", str(tmp_path / name)) for name in ("gun", "cat")]
    gun, cat = erase_all(tasks, None)
    assert (gun.state, gun.why) == ("refused", "failed with RuntimeError: CUDA error: out of memory")
    assert (cat.state, cat.bytes) == ("made", 3)


def test_every_process_of_several_loads_the_model_onto_its_turns_card(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []
    monkeypatch.setattr(many, "load_pipeline", lambda *named: loaded.append(named))
    monkeypatch.setattr(many, "visible_cards", lambda: 2)
    monkeypatch.setattr(many.os, "setsid", lambda: None)
    for number in range(3):
        waiting: queue.Queue[None] = queue.Queue()
        waiting.put(None)
        many._work(waiting, queue.Queue(), ("sd14", "cuda", DEFAULT), 1, number)
    assert [device for _, device, _ in loaded] == ["cuda:0", "cuda:1", "cuda:0"]


def test_too_few_pairs_are_refused_before_the_fit_and_only_for_snce(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun = []

    def fitted(pipe: object, concept: object, name: str, *rest: object, **more: object) -> None:
        begun.append(name)
        raise ExciseError("enough")

    monkeypatch.setattr(many, "load_pipeline", lambda *which: None)
    monkeypatch.setattr(many, "erase_by", fitted)
    tasks = [Task("gun", by, str(tmp_path / by), (), n=4) for by in ("snce", "uce", "uce+snce")]
    done = erase_all([*tasks, Task("gun", "snce", str(tmp_path / "weak"), (), n=4, accept_weak=True)], None)
    assert begun == ["uce", "snce"]
    assert [d.state for d in done] == ["weak", "refused", "weak", "refused"]
    assert "only 4 pairs" in done[0].why
