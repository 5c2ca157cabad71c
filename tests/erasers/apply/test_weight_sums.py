"""The sums of weights and changes that a layer keeps: made once a setting, and never of other weights."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import excise
from excise.erasers import Eraser
from excise.erasers.apply.weights import KEPT, Summed
from excise.erasers.hooks.wrapping import found_on
from tests.erasers.apply.test_weights import KEY, change_of, eraser_of
from tests.erasers.test_settings import own_pipeline

STRENGTHS = 0.25, 0.5, 0.75, 1.0
STEPS = 3


@pytest.fixture
def eraser(tiny_pipe: Any) -> Eraser:
    return eraser_of(tiny_pipe, change_of(tiny_pipe, KEY))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[float]:
    """How often a sum was computed, by strength."""
    found, summed = Counter[float](), Summed._summed

    def counted(self: Summed, state: Tensor, amounts: Any) -> Tensor:
        found.update(amount for _, amount in amounts)
        return summed(self, state, amounts)

    monkeypatch.setattr(Summed, "_summed", counted)
    return found


def sums_of(pipe: Any) -> dict[Any, Any]:
    summed = found_on(pipe.unet.get_submodule(KEY), Summed)
    assert summed is not None
    return summed._sums


def test_tenants_that_draw_at_once_do_not_drive_each_others_sums_out(
    tiny_pipe: Any, eraser: Eraser, made: Counter[float]
) -> None:
    meet, kept = threading.Barrier(len(STRENGTHS), timeout=60), list[int]()

    def draw(strength: float) -> None:
        def step_end(*step: Any) -> dict[str, Any]:
            meet.wait()
            kept.append(len(sums_of(tiny_pipe)))
            return {}

        with excise.using(tiny_pipe, {"gun": strength}):
            own_pipeline(tiny_pipe)(
                "a cat", num_inference_steps=STEPS, output_type="latent", callback_on_step_end=step_end
            )

    with eraser.attach(tiny_pipe):
        made.clear()
        threads = [threading.Thread(target=draw, args=(strength,)) for strength in STRENGTHS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # That of strength 1 may be left from the canary.
        assert {**made, 1.0: 1} == dict.fromkeys(STRENGTHS, 1)
        assert max(kept) >= len(STRENGTHS)
        with excise.using(tiny_pipe, {"gun": 0.1}):
            own_pipeline(tiny_pipe)("a cat", num_inference_steps=1, output_type="latent")
        assert len(sums_of(tiny_pipe)) <= KEPT + 1, "those of no image are dropped"


def written(layer: Any, buffer: Any) -> None:
    with torch.no_grad():
        layer.weight.mul_(2)


def swapped(layer: Any, buffer: Any) -> None:
    layer.weight.data = 2 * layer.weight.data


def freed_and_used_again(layer: Any, buffer: Any) -> None:
    """Another tensor at the same address, with the same write counter."""
    address = layer.weight.data_ptr()
    layer.weight.data = torch.zeros_like(layer.weight)
    buffer *= 2
    layer.weight.data = torch.from_numpy(buffer)
    assert layer.weight.data_ptr() == address


@pytest.mark.parametrize("change", [written, swapped, freed_and_used_again])
def test_changed_weights_are_summed_again(
    tiny_pipe: Any, eraser: Eraser, change: Callable[[nn.Module, Any], None]
) -> None:
    layer = tiny_pipe.unet.get_submodule(KEY)
    buffer = np.array(layer.weight.detach().numpy())
    layer.weight.data = torch.from_numpy(buffer)
    state = torch.randn(2, layer.weight.shape[1], generator=torch.Generator().manual_seed(0))
    (edit,) = eraser.edits
    assert edit.delta is not None  # type: ignore[union-attr]
    with eraser.attach(tiny_pipe), torch.no_grad():
        for _ in range(2):
            wanted = F.linear(state, layer.weight + edit.delta)  # type: ignore[union-attr]
            torch.testing.assert_close(layer(state), wanted)
            change(layer, buffer)
        torch.testing.assert_close(layer(state), F.linear(state, layer.weight + edit.delta))  # type: ignore[union-attr]
