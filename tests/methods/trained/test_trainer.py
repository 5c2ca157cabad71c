"""The loop that every trained method shares."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from excise.methods.configs.trained import TuningConfig
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
