"""Observers: hooks put on a text encoder after an eraser was attached, such as a profiler's, which change nothing.

An observer gets copies of what a module reads and returns, so that it cannot change what the encoder computes. If it
changes a copy or returns something else, the prompt is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Iterator, MutableMapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from excise.erasers.hooks.bound import Bound
from excise.erasers.hooks.context import is_muted

if TYPE_CHECKING:
    from excise.erasers.hooks.host import Host

LIBRARIES = ("excise", "accelerate", "diffusers", "transformers")
"""Packages whose hooks do not count: offloading, recorded hidden states, Excise itself."""
Key = tuple[int, int]
"""A module's hook: the module's `id`, and PyTorch's number of the hook, which it never uses twice."""


class Observer(Bound):
    """A hook in place of the one that it holds."""

    def __init__(self, hook: Any, path: str, before: bool) -> None:
        """`before` says whether it is a pre-hook, of the module at `path`."""
        self.hook, self.path, self._before = hook, path, before
        self.hosts: tuple[Host, ...] = ()
        """The attachments that were proved without the hook."""

    # A compiled module must not trace decisions that depend on what is attached.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, module: nn.Module, *given: Any) -> Any:
        objecting = self._objecting()
        if not objecting:
            return self.hook(module, *given)
        copies = copied(given)
        made = self.hook(module, *copies)
        # A pre-hook returns all arguments, or the only one; with those by name too if it reads them.
        whole = given[-1] if not self._before else given if len(given) > 1 else given[0]
        returned = made is None or same(made, whole) or (self._before and same((made,), given[0]))
        if returned and same(copies, given):
            return None
        self.refuse()
        if made is not None:
            return made
        return copies[-1] if not self._before else copies if len(copies) > 1 else copies[0]

    def _objecting(self) -> list[Host]:
        return [host for host in self.hosts if host.active and not is_muted(host, "text")]

    def refuse(self) -> None:
        """Refuse the prompt, or do what `on_bypass` says, for every active attachment that was proved without it."""
        for host in self._objecting():
            host.bypass(
                f"the text encoder's code changed after eraser {host.name!r} was attached: a hook on {self.path} "
                "changes what it computes; remove it, or attach the eraser again, which proves it again"
            )


def _hooked(encoders: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module, MutableMapping[int, Any]]]:
    for component, encoder in encoders:
        for path, module in encoder.named_modules():
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                if hooks:
                    yield f"{component}.{path}".rstrip("."), module, hooks


def hooks_now(encoders: Iterable[tuple[str, nn.Module]]) -> frozenset[Key]:
    """Return the hooks on every module of these encoders."""
    return frozenset((id(module), number) for _, module, hooks in _hooked(encoders) for number in list(hooks))


def observe(host: Host, encoders: Iterable[tuple[str, nn.Module]], proved: Container[Key]) -> bool:
    """Treat all hooks but those `proved` and the libraries' as observers. Return whether there were new ones."""
    found = False
    for path, module, hooks in _hooked(encoders):
        for number, hook in list(hooks.items()):
            if (id(module), number) in proved or (not isinstance(hook, Observer) and is_of_library(hook)):
                continue
            if not isinstance(hook, Observer):
                found, hook = True, Observer(hook, path, hooks is module._forward_pre_hooks)
                hook.hosts = (host,)
                if number in hooks:  # not removed meanwhile
                    hooks[number] = hook
            elif host not in hook.hosts:
                hook.hosts = (*hook.hosts, host)
    return found


def release(host: Host, encoders: Iterable[tuple[str, nn.Module]]) -> None:
    """Put back the hooks that no other attachment observes."""
    for _, _, hooks in _hooked(encoders):
        for number, hook in list(hooks.items()):
            if isinstance(hook, Observer) and host in hook.hosts:
                hook.hosts = tuple(other for other in hook.hosts if other is not host)
                if not hook.hosts and number in hooks:
                    hooks[number] = hook.hook


class LatePreHooks:
    """Pre-hooks of a module that became observers during a run of it, which calls them as they were.

    PyTorch collects the hooks before it calls the first.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module, self._before = module, dict(module._forward_pre_hooks)
        self._found: list[Observer] = []
        self._given: Any = None

    def found(self, args: tuple[Any, ...], kwargs: dict[str, Any], own: int) -> bool:
        """Whether there are any, asked by the pre-hook of the number `own`. Refuse those that ran before it."""
        hooks = self._module._forward_pre_hooks
        new = {
            number: hook
            for number, hook in list(hooks.items())
            if isinstance(hook, Observer) and not isinstance(self._before.get(number), Observer)
        }
        if not new:
            return False
        order = list(self._before)
        for number in [number for number in new if number in order[: order.index(own)]]:
            new.pop(number).refuse()
        self._found, self._given = list(new.values()), copied((args, kwargs))
        return True

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse what they have changed, given the arguments that arrive in `forward`."""
        if not same(self._given, (args, kwargs)):
            for observer in self._found:
                observer.refuse()


def copied(thing: Any) -> Any:
    """Return a copy of all tensors, in copies of the tuples, lists and dictionaries around them."""
    if isinstance(thing, Tensor):
        return thing.clone()
    if isinstance(thing, dict):
        made = copy.copy(thing)
        for name, value in thing.items():
            made[name] = copied(value)
        return made
    if isinstance(thing, list | tuple):
        parts = [copied(part) for part in thing]
        return type(thing)(*parts) if hasattr(thing, "_fields") else type(thing)(parts)
    return thing


def same(one: Any, other: Any) -> bool:
    """Whether two things are equal to the bit, on whatever devices."""
    if one is other:
        return True
    if type(one) is not type(other) and not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return False
    if isinstance(one, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return bool(torch.isclose(one, other.to(one.device), rtol=0, atol=0, equal_nan=True).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool | int | float | str) and one == other


def is_of_library(function: Any) -> bool:
    """Whether a hook is Excise's own, or one of a library that may come and go."""
    if isinstance(getattr(function, "__self__", None), Bound):
        return True
    while isinstance(function, partial):
        function = function.func
    name = str(getattr(function, "__module__", None))
    return name.partition(".")[0] in LIBRARIES or name.startswith("torch.utils.")
