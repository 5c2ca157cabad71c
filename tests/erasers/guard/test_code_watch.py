"""What an operator may do to a text encoder under an eraser does not count as a change of its code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from excise.erasers import Eraser
from excise.erasers.guard.code_watch import code_now, same_code
from excise.erasers.guard.weights_watch import WeightsWatch
from tests import tiny
from tests.erasers.test_routes import CODE


def _offloaded(pipe: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(pipe.text_encoder, torch.device("cpu"), offload_buffers=True)


def _moved_as_a_whole(pipe: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload_with_hook(pipe.text_encoder, torch.device("cpu"))


def _layers_recorded(pipe: Any) -> None:
    pipe.text_encoder(torch.zeros(1, 8, dtype=torch.long), output_hidden_states=True)


def _wrapped_when_compiled(pipe: Any) -> None:
    pipe.text_encoder = torch.compile(pipe.text_encoder, backend="eager")


HONEST: dict[str, Callable[[Any], Any]] = {
    "offloaded by weight": _offloaded,
    "offloaded as a whole": _moved_as_a_whole,
    "hidden states recorded": _layers_recorded,
    "compiled in place": lambda pipe: pipe.text_encoder.compile(backend="eager"),
    "compiled": _wrapped_when_compiled,
    "bfloat16": lambda pipe: pipe.text_encoder.bfloat16(),
    "float16 and back": lambda pipe: pipe.text_encoder.half().float(),
    "training mode": lambda pipe: pipe.text_encoder.train(),
    "gradient checkpointing": lambda pipe: pipe.text_encoder.gradient_checkpointing_enable(),
}


@pytest.mark.parametrize("change", HONEST)
def test_an_operators_change_does_not_count(tiny_pipe: Any, gun_eraser: Eraser, change: str) -> None:
    with gun_eraser.attach(tiny_pipe), torch.no_grad():
        watched = WeightsWatch(tiny_pipe)
        watched.now()
        before = watched.code
        HONEST[change](tiny_pipe)
        watched.now()
        assert same_code(watched.code, before)


def test_erasers_come_and_go(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    watched = WeightsWatch(tiny_pipe)
    before = watched.code
    with gun_eraser.attach(tiny_pipe):
        watched.now()
        assert same_code(watched.code, before)
        with replace(gun_eraser, name="other").attach(tiny_pipe):
            watched.now()
            assert same_code(watched.code, before)
    watched.now()
    assert same_code(watched.code, before)


@pytest.mark.parametrize("change", CODE)
def test_the_quick_look_notices_other_code(tiny_pipe: Any, change: str) -> None:
    watched = WeightsWatch(tiny_pipe)
    before = watched.code
    CODE[change](tiny_pipe)
    watched.now()
    assert not same_code(watched.code, before)


def test_a_hook_on_every_module_counts(tiny_pipe: Any) -> None:
    encoders = {"text_encoder": tiny_pipe.text_encoder}
    before = code_now(encoders)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, given, made: None)
    try:
        assert not same_code(code_now(encoders), before)
    finally:
        handle.remove()


def test_a_replacement_below_an_offloading_counts(tiny_pipe: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    fc1 = tiny.body(tiny_pipe.text_encoder).encoder.layers[0].mlp.fc1
    fc1.forward = lambda x: x
    accelerate.cpu_offload(tiny_pipe.text_encoder, torch.device("cpu"))
    code = code_now({"text_encoder": tiny_pipe.text_encoder})
    path = next(path for path in code if path.endswith("layers.0.mlp.fc1"))
    assert len(code[path].functions) == 2
