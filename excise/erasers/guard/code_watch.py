"""Code of a text encoder: what decides its states besides its weights.

A LoRA can replace `Linear.forward` (kohya's does), a hook can return other states, an activation or `eps` can be set.
None of these shows in the weights. Wrappers of accelerate and diffusers and Excise's own hooks come and go, and do not
count. Later hooks of others become observers (`excise.erasers.hooks.observers`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, ValuesView
from functools import partial
from itertools import chain
from operator import is_
from types import BuiltinFunctionType, FunctionType, MethodType, NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from excise.erasers.hooks.observers import Key, Observer, is_of_library
from excise.erasers.hooks.wrapping import wrapped_by

_PASSING = {"training", "gradient_checkpointing", "forward", "to", "cuda", "npu", "xpu", "mlu", "musa", "sdaa"}
"""Attributes that an offloading or a change of mode sets."""
_ROPE = {"max_seq_len_cached", "attention_scaling"}
"""Attributes that rotary embeddings of a growing length set while they run."""
_SCALARS = (bool, int, float, str, NoneType)
_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType, partial)
BUFFER_SAMPLES = 4096
"""Most values compared of one buffer."""


class Code(NamedTuple):
    """The code of one module."""

    kind: type
    functions: tuple[Any, ...]
    """The class's `forward`, and replacements of it, hooks and functions among the attributes that no library set."""
    settings: tuple[tuple[str, Any], ...]
    """Numbers, flags and texts among its attributes, by name."""
    buffers: dict[str, Tensor | None]
    """Sampled values by name; None if accelerate keeps them where they cannot be read."""

    def equals(self, other: Code) -> bool:
        """Whether both are the same, except for buffers cast to another precision."""
        return self[:3] == other[:3] and all(
            _close(self.buffers.get(name), other.buffers.get(name)) for name in {*self.buffers, *other.buffers}
        )


Codes = dict[str, Code]


def code_now(encoders: dict[str, nn.Module], hooks: Container[Key] | None = None) -> Codes:
    """Return the code of every module of these encoders by path, and the hooks that every module runs.

    Of the modules' own hooks only these `hooks` count, or all.
    """
    found = {"": Code(nn.Module, tuple(_foreign(_everywhere())), (), {})}
    for component, encoder in encoders.items():
        for path, module in encoder.named_modules():
            found[f"{component}.{path}"] = _code_of(module, hooks)
    return found


def same_code(one: Codes, other: Codes) -> bool:
    """Whether two results of `code_now` are the same."""
    return one is other or (one.keys() == other.keys() and all(one[path].equals(other[path]) for path in one))


class Contents:
    """Everything that encoders' modules hold, to see quickly that nothing was put in, removed or replaced."""

    def __init__(self, encoders: Iterable[nn.Module]) -> None:
        self._modules = [module for encoder in encoders for module in encoder.modules()]
        self._kinds: list[type[nn.Module]] = [*map(type, self._modules)]
        self._dicts = [*map(vars, self._modules)]
        self._views = [view for held in self._dicts for view in _views(held)]
        self._lengths, self._held = [*map(len, self._views)], [*chain.from_iterable(self._views)]
        self._forwards = [(kind, kind.forward) for kind in set(self._kinds)]
        self._everywhere = tuple(_everywhere())

    def is_same(self) -> bool:
        """Whether every module holds the same objects as then."""
        return (
            self._everywhere == tuple(_everywhere())
            and all(kind.forward is forward for kind, forward in self._forwards)
            and all(map(is_, map(type, self._modules), self._kinds))
            and all(map(is_, map(vars, self._modules), self._dicts))
            and [*map(len, self._views)] == self._lengths
            # The views are of the dictionaries that were there, and among what they hold are these dictionaries.
            and all(map(is_, chain.from_iterable(self._views), self._held))
        )


def _everywhere() -> Iterator[Any]:
    return chain(torch_module._global_forward_pre_hooks.values(), torch_module._global_forward_hooks.values())


def _views(held: dict[str, Any]) -> list[ValuesView[Any]]:
    """Return live views of what a module's dictionary holds."""
    inner = ("_forward_hooks", "_forward_pre_hooks", "_modules", "_parameters", "_buffers")
    return [held.values(), *(held[name].values() for name in inner)]


def _code_of(module: nn.Module, counting: Container[Key] | None) -> Code:
    held = list(vars(module).items())
    growing = any(word in str(vars(module).get("rope_type")) for word in ("dynamic", "longrope"))
    names = [(name, value) for name, value in held if not (name.startswith("_") or name in _PASSING)]
    settings = [(n, v) for n, v in names if _is_scalar(v) and not (growing and n in _ROPE)]
    functions = [value for _, value in names if isinstance(value, _FUNCTIONS)]
    numbered = (*module._forward_pre_hooks.items(), *module._forward_hooks.items())
    counted = [hook for number, hook in numbered if counting is None or (id(module), number) in counting]
    hooks = [hook.hook if isinstance(hook, Observer) else hook for hook in counted]
    buffers = {} if growing else {name: _values(module, name) for name in list(module._buffers)}
    own = (type(module).forward, *_replacements(module), *_foreign(hooks), *functions)
    return Code(type(module), own, tuple(sorted(settings, key=lambda each: each[0])), buffers)


def _is_scalar(value: Any) -> bool:
    return type(value) in _SCALARS or (type(value) is tuple and all(type(part) in _SCALARS for part in value))


def _foreign(hooks: Iterable[Any]) -> list[Any]:
    """Return the hooks that no library set."""
    return [hook for hook in hooks if not is_of_library(hook)]


def _replacements(module: nn.Module) -> Iterator[Any]:
    """Yield what runs in place of the class's `forward`, below and within wrappers of accelerate and diffusers."""
    forward = vars(module).get("forward")
    while isinstance(forward, partial) and isinstance(forward.func, FunctionType):
        origin = str(forward.func.__globals__.get("__name__"))
        if origin == "accelerate.hooks":
            hook = vars(module).get("_hf_hook")
            if hook is not None and not is_of_library(type(hook)):
                yield hook
            forward = vars(module).get("_old_forward")
        elif origin == "diffusers.hooks.hooks" and (wrapped := wrapped_by(forward.func)) is not None:
            yield from _foreign(part for part in (wrapped.pre_forward, wrapped.post_forward) if part is not None)
            forward = wrapped.original_forward or wrapped.forward
        else:
            break
    is_own = getattr(forward, "__self__", None) is module and getattr(forward, "__func__", None) is type(module).forward
    if forward is not None and not is_own:
        yield forward


def _values(module: nn.Module, name: str) -> Tensor | None:
    tensor = module._buffers[name]
    if tensor is not None and tensor.is_meta:
        kept = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        try:
            tensor = kept[name] if kept is not None else None
        except KeyError:
            tensor = None
    if tensor is None:
        return None
    flat = tensor.detach().flatten()
    return flat[:: max(1, len(flat) // BUFFER_SAMPLES)][:BUFFER_SAMPLES].cpu().double()


def _close(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return True
    return one.shape == other.shape and bool(torch.isclose(one, other, rtol=2**-7, atol=1e-6, equal_nan=True).all())
