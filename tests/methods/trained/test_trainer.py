"""The loop that every trained method shares."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from excise.errors import ExciseError
from excise.files import put_folder
from excise.methods.configs.trained import TuningConfig
from excise.methods.trained import trainer
from excise.methods.trained.trainer import tune


def test_every_step_draws_from_a_seed_of_its_own() -> None:
    drawn: list[float] = []

    def loss(generator: torch.Generator) -> torch.Tensor:
        drawn.append(float(torch.rand((), generator=generator)))
        return weight.square().sum()

    for seed in (0, 1, 0):
        weight = torch.ones(1, requires_grad=True)
        student: Any = SimpleNamespace(changes={"site": weight})
        tune(student, loss, TuningConfig(iterations=4, seed=seed, checkpoint=""), "key")
    first, other, again = drawn[:4], drawn[4:8], drawn[8:]
    assert len({*first, *other}) == 8, "no two steps, and no two trainings, draw the same"
    assert first == again


def stopped_after(folder: Path, step: int) -> None:
    """Train with a checkpoint at every step, and stop."""

    def loss(generator: torch.Generator) -> torch.Tensor:
        if len(seen) == step:
            raise ZeroDivisionError
        seen.append(step)
        return weight.square().sum()

    seen: list[int] = []
    weight = torch.ones(1, requires_grad=True)
    student: Any = SimpleNamespace(changes={"site": weight})
    config = TuningConfig(iterations=9, checkpoint=str(folder), checkpoint_every=1)
    with pytest.raises(ZeroDivisionError):
        tune(student, loss, config, "key")


def resumed(folder: Path) -> int:
    """Return how many of nine steps the same training still takes."""
    drawn: list[int] = []

    def loss(generator: torch.Generator) -> torch.Tensor:
        drawn.append(0)
        return weight.square().sum()

    weight = torch.ones(1, requires_grad=True)
    student: Any = SimpleNamespace(changes={"site": weight})
    tune(student, loss, TuningConfig(iterations=9, checkpoint=str(folder), checkpoint_every=1), "key")
    return len(drawn)


def test_halves_of_two_checkpoints_are_refused(tmp_path: Path) -> None:
    for step in (2, 5):
        stopped_after(tmp_path / str(step), step)
    (tmp_path / "5" / "state.safetensors").replace(tmp_path / "2" / "state.safetensors")
    with pytest.raises(ExciseError, match="not of one step"):
        resumed(tmp_path / "2")


def test_a_checkpoint_of_an_earlier_version_has_no_digest(tmp_path: Path) -> None:
    stopped_after(tmp_path / "run", 2)
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    del state["sha256"]
    (tmp_path / "run" / "state.json").write_text(json.dumps(state))
    assert resumed(tmp_path / "run") == 7


@pytest.mark.parametrize("when", ["before", "between"])
def test_a_checkpoint_that_changes_while_it_is_read(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process at the same training writes the next one, or removes all when it is done."""
    folder = tmp_path / "run"
    stopped_after(folder, 2)
    stopped_after(tmp_path / "later", 5)
    changes = iter([lambda: put_folder(tmp_path / "later", folder), lambda: None, lambda: shutil.rmtree(folder)])
    plain = trainer.read_tensors

    def read(path: Path) -> bytes:
        next(changes)()
        return plain(path)

    monkeypatch.setattr(trainer, "read_tensors", read)
    if when == "before":
        next(changes)
        next(changes)
        assert resumed(folder) == 9, "it begins at the first step"
    else:
        assert resumed(folder) == 4
