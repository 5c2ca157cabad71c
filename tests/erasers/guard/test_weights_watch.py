"""The quick look before every prompt says what a walk through all modules says, whatever was done in between."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from excise.erasers import Eraser
from excise.erasers.guard import weights_watch
from excise.erasers.guard.weights_watch import WeightsWatch, weights_now
from tests import tiny


def _fc1(pipe: Any) -> Any:
    return tiny.body(pipe.text_encoder).get_submodule("encoder.layers.1").mlp.fc1


def _written_in_place(pipe: Any) -> None:
    with torch.no_grad():
        _fc1(pipe).bias[3] += 0.01


def _written_behind_the_counter(pipe: Any) -> None:
    _fc1(pipe).bias.data[0] += 0.01


def _given_other_data(pipe: Any) -> None:
    _fc1(pipe).bias.data = _fc1(pipe).bias.data + 1


def _weight_replaced(pipe: Any) -> None:
    _fc1(pipe).bias = nn.Parameter(torch.zeros_like(_fc1(pipe).bias))


def _layer_replaced(pipe: Any) -> None:
    layers = tiny.body(pipe.text_encoder).get_submodule("encoder.layers")
    layers[1] = copy.deepcopy(layers[1])


def _layer_added(pipe: Any) -> None:
    _fc1(pipe).add_module("more", nn.Linear(2, 2))


def _encoder_replaced(pipe: Any) -> None:
    pipe.text_encoder = copy.deepcopy(pipe.text_encoder)


def _vocabulary_grown(pipe: Any) -> None:
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.add_tokens(["<gun-inversion>"])


def _cast(pipe: Any) -> None:
    pipe.text_encoder.bfloat16()


def _denoiser_written(pipe: Any) -> None:
    with torch.no_grad():
        pipe.unet.conv_in.bias += 1


CHANGES = (
    _written_in_place, _written_behind_the_counter, _given_other_data, _weight_replaced, _layer_replaced, _layer_added,
    _encoder_replaced, _vocabulary_grown, _cast, _denoiser_written,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_shows_at_the_next_look(tiny_pipe: Any, change: Callable[[Any], None]) -> None:
    watched = WeightsWatch(tiny_pipe, ("unet",))
    before, _ = watched.now()
    assert before == weights_now(tiny_pipe, ("unet",))
    change(tiny_pipe)
    after, _ = watched.now()
    assert after != before
    assert after == weights_now(tiny_pipe, ("unet",))
    assert watched.now()[0] is after, "and from then on it stands"


def test_weights_that_are_moved_are_freed(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """An offloading replaces the memory of every weight by that on another device."""

    def move() -> list[StorageWeakRef]:
        before = [StorageWeakRef(p.untyped_storage()) for p in parameters]  # type: ignore[no-untyped-call]
        for parameter in parameters:
            parameter.data = parameter.data.clone()
        return before

    parameters = [*tiny_pipe.text_encoder.parameters(), *tiny_pipe.unet.parameters()]
    move()  # away from memory that other tests share
    with gun_eraser.attach(tiny_pipe):
        for _ in range(3):
            assert all(memory.expired() for memory in move())  # type: ignore[no-untyped-call]
            tiny_pipe.encode_prompt("a gun on grass", "cpu", 1, False)


def test_an_unchanged_pipeline_is_not_walked_through(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = WeightsWatch(tiny_pipe)
    monkeypatch.setattr(weights_watch, "weights_now", lambda *args: pytest.fail("walked"))
    watched.now()
    _written_in_place(tiny_pipe)
    with pytest.raises(pytest.fail.Exception, match="walked"):
        watched.now()


def test_a_channels_last_denoiser_is_not_walked_through_either(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights_now(tiny_pipe, ("unet",))
    tiny_pipe.unet.to(memory_format=torch.channels_last)
    weight = tiny_pipe.unet.conv_in.weight
    assert not weight.is_contiguous()
    watched = WeightsWatch(tiny_pipe, ("unet",))
    assert watched.now()[0] == before
    monkeypatch.setattr(weights_watch, "weights_now", lambda *args: pytest.fail("walked"))
    watched.now()
    weight.data[0, 0, 0, 0] += 1
    with pytest.raises(pytest.fail.Exception, match="walked"):
        watched.now()


def test_weights_out_of_order_are_read_again_every_time(tiny_pipe: Any) -> None:
    """Their sample is a copy, which would not show later writes."""
    weight = _fc1(tiny_pipe).weight
    weight.data = weight.data.T.contiguous().T
    watched = WeightsWatch(tiny_pipe)
    before, _ = watched.now()
    _fc1(tiny_pipe).weight.data[0, 0] += 1
    assert watched.now()[0] != before


def test_a_lora_that_is_switched_shows(tiny_pipe: Any) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    watched = WeightsWatch(tiny_pipe)
    before, none = watched.now()
    tiny_pipe.text_encoder.add_adapter(config)
    after, layers = watched.now()
    assert none == []
    assert layers
    assert after != before
    tiny_pipe.text_encoder.disable_adapters()
    assert watched.now()[1] != layers
