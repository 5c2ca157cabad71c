"""Hooks that only look at a text encoder may be put on it at any time; those that change something are refused."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from excise.erasers import Eraser
from excise.erasers.hooks.observers import Observer, copied, same
from excise.errors import EraserDidNotFire
from tests import tiny
from tests.erasers.test_routes import CAT, GUN, ROUTES, draw

Seen = list[Any]


def _layer(pipe: Any, n: int) -> Any:
    return tiny.body(pipe.text_encoder).encoder.layers[n]


def _look(seen: Seen, module: Any, *given: Any) -> None:
    seen.append(given)


def _hand_back(seen: Seen, module: Any, *given: Any) -> Any:
    seen.append(given)
    return given[-1]


def _hand_back_all(seen: Seen, module: Any, *given: Any) -> Any:
    seen.append(given)
    return given


OBSERVERS: dict[str, Callable[[Any, Seen], list[Any]]] = {
    "times of the encoder": lambda pipe, seen: [
        pipe.text_encoder.register_forward_pre_hook(partial(_look, seen)),
        pipe.text_encoder.register_forward_hook(partial(_look, seen)),
    ],
    "every layer": lambda pipe, seen: [
        module.register_forward_hook(partial(_look, seen)) for module in pipe.text_encoder.modules()
    ],
    "the edited layer's output handed back": lambda pipe, seen: [
        _layer(pipe, 2).register_forward_hook(partial(_hand_back, seen))
    ],
    "arguments handed back": lambda pipe, seen: [
        pipe.text_encoder.register_forward_pre_hook(partial(_hand_back_all, seen), with_kwargs=True),
        _layer(pipe, 1).register_forward_pre_hook(partial(_hand_back, seen)),
    ],
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("way", OBSERVERS)
def test_an_observer_changes_nothing_and_is_not_refused(
    tiny_pipe: Any, gun_eraser: Eraser, way: str, route: Any
) -> None:
    with gun_eraser.attach(tiny_pipe) as attachment:
        erased, seen = draw(tiny_pipe, prompt=GUN), list[Any]()
        handles = OBSERVERS[way](tiny_pipe, seen)
        for _ in range(2):
            assert torch.equal(route(tiny_pipe, {"prompt": GUN}), erased)
        assert seen
        handles.pop().remove()
        seen.clear()
        assert torch.equal(route(tiny_pipe, {"prompt": GUN}), erased)
        assert bool(seen) == bool(handles)
        assert attachment.status()["bypasses"] == 0
    hooks = [h for module in tiny_pipe.text_encoder.modules() for h in module._forward_hooks.values()]
    assert not any(isinstance(hook, Observer) for hook in hooks), "the caller's own hooks are back"
    seen.clear()
    draw(tiny_pipe, prompt=GUN)
    assert bool(seen) == bool(handles)


def test_a_hook_belongs_to_the_model_of_the_eraser_that_was_proved_with_it(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """It changes states: one eraser was proved without it, the other with it."""
    other = replace(gun_eraser, name="other", edits=(replace(gun_eraser.edits[0], lam=2.5),))  # type: ignore[type-var]
    with gun_eraser.attach(tiny_pipe, name="without") as without:
        handle = _layer(tiny_pipe, 0).register_forward_hook(_doubled)
        with other.attach(tiny_pipe, name="with", strict=False, on_bypass="raise") as second:
            with pytest.raises(EraserDidNotFire, match=r"a hook on text_encoder\.\S*layers\.0 changes"):
                draw(tiny_pipe, prompt=CAT)
            without.enabled = False
            changed = draw(tiny_pipe, prompt=CAT)
            without.enabled = True
            second.enabled = False
            with pytest.raises(EraserDidNotFire, match="'without'"):
                draw(tiny_pipe, prompt=CAT)
            handle.remove()
            assert not torch.equal(draw(tiny_pipe, prompt=CAT), changed)
            second.enabled = True
            with pytest.raises(EraserDidNotFire, match="a hook removed"):
                draw(tiny_pipe, prompt=CAT)


def _doubled(module: Any, given: Any, made: Any) -> Any:
    return (2 * made[0], *made[1:]) if isinstance(made, tuple) else 2 * made


def _other_prompt(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Change the argument with the tokens' ids, which is by name or not."""
    return tuple(each.roll(1, 1) for each in args), {**kwargs, **{n: v.roll(1, 1) for n, v in _ids(kwargs)}}


def _ids(kwargs: dict[str, Any]) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in kwargs.items() if name == "input_ids"]


@pytest.mark.parametrize("before_ours", [True, False])
@pytest.mark.parametrize("route", ROUTES[1:3])
def test_the_first_run_that_a_new_hook_of_the_encoder_changes_is_refused(
    tiny_pipe: Any, gun_eraser: Eraser, route: Any, before_ours: bool
) -> None:
    """PyTorch has collected the hooks of that run already, so the hook itself is called and not its observer."""
    once = {"prompt": CAT, "guidance_scale": 1.0}  # a single run, so that no later one is refused in its place
    with gun_eraser.attach(tiny_pipe) as attachment:
        handle = tiny_pipe.text_encoder.register_forward_pre_hook(_other_prompt, with_kwargs=True, prepend=before_ours)
        with pytest.raises(EraserDidNotFire, match="a hook on text_encoder changes what it computes"):
            route(tiny_pipe, once)
        handle.remove()
        assert attachment.status()["bypasses"] == 1
        route(tiny_pipe, once)


@pytest.mark.parametrize("on_bypass", ["warn", "allow"])
def test_a_change_that_is_allowed_is_made(tiny_pipe: Any, gun_eraser: Eraser, on_bypass: Any) -> None:
    def write(module: Any, given: Any, made: Any) -> None:
        (made[0] if isinstance(made, tuple) else made).mul_(2)

    with gun_eraser.attach(tiny_pipe, on_bypass=on_bypass) as attachment:
        images = []
        for hook in (_doubled, write):
            handle = _layer(tiny_pipe, 0).register_forward_hook(hook)
            if on_bypass == "warn":
                with pytest.warns(UserWarning, match="code changed"):
                    images.append(draw(tiny_pipe, prompt=CAT))
            else:
                images.append(draw(tiny_pipe, prompt=CAT))
            handle.remove()
        assert torch.equal(*images) and not torch.equal(images[0], draw(tiny_pipe, prompt=CAT))
        assert attachment.status()["bypasses"] >= 2


Pair = namedtuple("Pair", "one other")


def test_copies_are_equal_to_the_bit_and_apart() -> None:
    state = torch.tensor([1.0, float("nan"), -float("inf")])
    whole = ((state, None), [Pair(state, 3)], {"mask": state.bool()}, BaseModelOutput(last_hidden_state=state), "text")
    copies = copied(whole)
    assert same(copies, whole) and [type(part) for part in copies] == [type(part) for part in whole]
    tensors: list[Tensor] = [copies[0][0], copies[1][0].one, copies[2]["mask"], copies[3].last_hidden_state]
    for tensor in tensors:
        before = tensor.clone()
        tensor[0] = 0
        assert not same(copies, whole)
        tensor.copy_(before)
        assert same(copies, whole)
    assert state[0] == 1
    for one, other in (((1,), (1, 2)), ({"a": 1}, {"b": 1}), (state, state[:2]), (state, state.double()), ((1,), [1])):
        assert not same(one, other)
