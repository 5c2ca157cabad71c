"""A linear layer is computed once for the same vectors, and again for anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from excise.sites import repeats as module
from excise.sites.repeats import Repeats, repeats


class Computed(TorchFunctionMode):
    """A count of the linear layers that are computed within it."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times += func is F.linear
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3, bias=bias)


def vectors(seed: int = 1) -> Tensor:
    return torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(seed))


def times(call: Callable[[], Any]) -> int:
    """How many linear layers a call computes within `Repeats`."""
    with Computed() as computed, Repeats():
        call()
    return computed.times


@pytest.mark.parametrize("bias", [True, False])
def test_the_same_vectors_give_the_same_bits(bias: bool) -> None:
    one = layer(bias)
    with Computed() as computed, Repeats():
        made = [one(vectors(seed)) for seed in (1, 2, 1, 2)]
    assert computed.times == 2
    for seed, given in zip((1, 2, 1, 2), made, strict=True):
        assert torch.equal(given, one(vectors(seed)))


def test_another_layer_is_computed_although_it_is_equal() -> None:
    one, other = layer(), layer()
    assert times(lambda: [one(vectors()), other(vectors())]) == 2
    other.weight = one.weight
    other.bias = nn.Parameter(one.bias + 1)
    wanted = other(vectors())
    with Repeats():
        one(vectors())
        assert torch.equal(other(vectors()), wanted)


@pytest.mark.parametrize("what", ["weight", "bias", "given", "made"])
def test_what_was_written_to_meanwhile_is_computed_again(what: str) -> None:
    one, given = layer(), vectors()
    with Computed() as computed, Repeats():
        tensors = {"weight": one.weight, "bias": one.bias, "given": given, "made": one(given)}
        tensors[what].add_(1)
        made = one(given)
    assert computed.times == 2
    assert torch.equal(made, one(given))


def test_other_vectors_are_computed() -> None:
    one, given = layer(), vectors()
    almost = given.clone()
    almost[1, 4, 3] = torch.nextafter(almost[1, 4, 3], torch.tensor(9.0))
    assert times(lambda: [one(given), one(given.clone()), one(almost), one(given[:1])]) == 3


def test_where_values_may_not_be_shared_all_is_computed() -> None:
    one, given = layer(), vectors()
    with torch.enable_grad():
        assert times(lambda: [one(given), one(given)]) == 2
    with torch.inference_mode():
        assert times(lambda: [one(given), one(given)]) == 2
        made_there = vectors()
    assert times(lambda: [one(made_there), one(made_there)]) == 2
    with torch.autocast("cpu", torch.bfloat16):
        assert times(lambda: [one(given), one(given)]) == 2


def test_no_more_is_kept_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 1)
    one = layer()
    assert times(lambda: [one(vectors(1)), one(vectors(1)), one(vectors(2)), one(vectors(2))]) == 3


def test_a_compiled_encoder_is_left_alone(tiny_pipe: Any) -> None:
    def run() -> int:
        with Computed() as computed, repeats(tiny_pipe):
            for _ in range(2):
                tiny_pipe.text_encoder(torch.tensor([[49406, 320, 49407]]))
        return computed.times

    assert run() == 3 * 6
    tiny_pipe.text_encoder.get_submodule("encoder.layers.1")._compiled_call_impl = lambda *args: None
    with Computed() as computed, repeats(tiny_pipe):
        one = layer()
        one(vectors()), one(vectors())
    assert computed.times == 2
