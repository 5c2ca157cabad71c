"""Hooks that wrap a module's `forward` (diffusers' HookRegistry) and keep working under `torch.compile`.

Transformers >= 5 can collect `hidden_states` before a plain forward hook has run. It cannot bypass a wrapped `forward`.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, TypeVar

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from excise.erasers.hooks.bound import Bound
from excise.erasers.hooks.observers import LatePreHooks
from excise.erasers.hooks.setting import LOCK, Fixed

_LIVE: weakref.WeakValueDictionary[int, Passage] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


class Passage(Bound, ModelHook):  # type: ignore[misc]
    """A hook through which tensors pass. It decides at every run what to do with them, compiled or not."""

    keeps = False
    """Whether it caches its results, so that they must not be written to."""

    def __init__(self) -> None:
        super().__init__()
        self._number = next(_NUMBERS)
        self.name, self.alive = f"excise.{self._number}", False
        self.wrapper: Any = None
        self.handles: tuple[RemovableHandle, ...] = ()
        _LIVE[self._number] = self

    def passed(self, state: Tensor) -> Tensor:
        """Return `state` or its replacement, of the same shape and dtype."""
        raise NotImplementedError

    def through(self, state: Tensor) -> Tensor:
        """Call `passed` within an operator that is opaque to the compiler. Its decisions are not traced, so a change of
        them needs no recompilation."""
        if torch.compiler.is_compiling():
            made: Tensor = _operator(state, self._number)
            return made
        return self.passed(state)

    def through_prediction(self, output: Any) -> Any:
        """Call `through` on a denoiser's prediction: a tuple's first tensor, or a model output's sample."""
        if isinstance(output, tuple):
            return (self.through(output[0]), *output[1:])
        output.sample = self.through(output.sample)
        return output


_UNSAFE = getattr(torch.Tag, "cudagraph_unsafe", None)
"""The tag of operators that a CUDA graph must not hold: it would be replayed without them. Older torch has none."""
_TAGGED: dict[str, Any] = {} if _UNSAFE is None else {"tags": (_UNSAFE,)}


@torch.library.custom_op("excise::through", mutates_args=(), **_TAGGED)
def _operator(state: Tensor, number: int) -> Tensor:
    hook = _LIVE[number]
    # The compiled module's own hooks, which keep the setting, run only while it is traced.
    with Fixed():
        made = hook.passed(state)
    return made.clone() if made is state or hook.keeps else made


@_operator.register_fake
def _(state: Tensor, number: int) -> Tensor:
    return torch.empty_like(state)


class Watch(Passage):
    """A passage that notices runs which bypass it.

    When accelerate renews an offloading, it restores the `forward` that it found, and drops later wrappers. Module
    hooks stay in place, and detect such runs.
    """

    observed = True
    """Whether it is on a text encoder, whose later hooks become observers."""

    def __init__(self) -> None:
        super().__init__()
        self._here = threading.local()

    # If another thread removes a hook while the module runs, it is still called, but without the keyword arguments.
    def arrived(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if torch.compiler.is_compiling():
            self.arrive(module, args, kwargs or {})
            return
        late = LatePreHooks(module) if self.observed else None
        self.arrive(module, args, kwargs or {})
        is_late = late is not None and self.handles and late.found(args, kwargs or {}, self.handles[0].id)
        self._here.late = late if is_late else None

    def departed(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        self.depart(module, args, rest[0] if len(rest) == 2 else {}, rest[-1])

    def arrive(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Prepare for a run of the module."""
        if not torch.compiler.is_compiling():
            self._here.met = False

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not torch.compiler.is_compiling():
            self._here.met = True
            if (late := getattr(self._here, "late", None)) is not None:
                self._here.late = None
                late.check(args, kwargs)
        return args, kwargs

    def depart(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Call `passed_by` if the module's run has bypassed the wrapped `forward`."""
        if not torch.compiler.is_compiling() and not getattr(self._here, "met", True):
            self._here.met = True
            with Fixed():  # the hook that kept the setting during the run has ended it already
                self.passed_by(module, args, kwargs, output)

    def passed_by(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Handle a run that bypassed the wrapped `forward`."""
        raise NotImplementedError


def install(module: nn.Module, hook: Passage) -> None:
    """Wrap `module.forward` with a hook. Note whether its hook registry is ours."""
    fresh = "_diffusers_hook" not in vars(module)
    if fresh:
        module._diffusers_hook = HookRegistry(module)
    registry = vars(module)["_diffusers_hook"]
    if fresh:
        registry.excise_made_it = True
    _wrap(module, registry, hook)
    hook.alive = True
    if isinstance(hook, Watch):
        before = module.register_forward_pre_hook(hook.arrived, with_kwargs=True)
        hook.handles = before, module.register_forward_hook(hook.departed, with_kwargs=True)


def _wrap(module: nn.Module, registry: HookRegistry, hook: Passage) -> None:
    registry.register_hook(hook, hook.name)
    hook.wrapper = vars(module)["forward"]


def renew(module: nn.Module, hook: Passage) -> None:
    """Wrap `module.forward` again if the wrapper was dropped, as accelerate drops it when it renews an offloading that
    is older."""
    if vars(module).get("forward") is hook.wrapper or not _is_dropped(module, hook):
        return
    with LOCK:
        if hook.alive and _is_dropped(module, hook):
            registry = vars(module)["_diffusers_hook"]
            _unlink(module, registry, hook)
            _wrap(module, registry, hook)


def _is_dropped(module: nn.Module, hook: Passage) -> bool:
    """Whether nothing but known wrappers other than the hook's is around the class's `forward`."""
    forward = vars(module).get("forward")
    while forward is not hook.wrapper and isinstance(forward, partial) and isinstance(forward.func, FunctionType):
        if forward.func.__globals__.get("__name__") == "accelerate.hooks":
            forward = vars(module).get("_old_forward")
        elif (wrapped := wrapped_by(forward.func)) is not None:
            forward = wrapped.original_forward or wrapped.forward
        else:
            return False
    return forward is None or getattr(forward, "__func__", None) is type(module).forward


def wrapped_by(function: Callable[..., Any]) -> Any:
    """Return the functions of the diffusers hook that a wrapper of `forward` calls, or None for another function."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return next((found for found in cells if hasattr(found, "original_forward")), None)


def remove(module: nn.Module, hook: Passage) -> None:
    """Remove a hook, and the registry too if it is ours and now unused.

    If `forward` was wrapped again since (by accelerate's offloading), our wrapper stays below it: to remove it would
    remove the other wrapper too. It passes everything through, and does not keep the hook in memory.
    """
    registry: HookRegistry | None = vars(module).get("_diffusers_hook")
    hook.alive = False
    for handle in hook.handles:
        handle.remove()
    if registry is None or registry.get_hook(hook.name) is not hook:
        return
    _unlink(module, registry, hook)
    hook.fn_ref.pre_forward = lambda module, *args, **kwargs: (args, kwargs)
    hook.fn_ref.post_forward = lambda module, output: output
    hook.fn_ref.forward = hook.fn_ref.original_forward or hook.fn_ref.forward
    if registry.hooks:
        return
    forward = vars(module).get("forward")
    if getattr(forward, "__func__", None) is type(module).forward:
        del module.forward
    if getattr(registry, "excise_made_it", False):
        del module._diffusers_hook


def _unlink(module: nn.Module, registry: HookRegistry, hook: Passage) -> None:
    """Remove a hook from its registry, and its wrapper from where the module or the hook above calls it.

    diffusers' own `remove_hook` overwrites what these call, even if it is a `new_forward` or another's wrapper.
    """
    below, forward = hook.fn_ref.original_forward or hook.fn_ref.forward, vars(module).get("forward")
    called = [(ref, ref.forward, ref.original_forward) for ref in registry._fn_refs]
    registry.remove_hook(hook.name, recurse=False)
    for ref, *both in called:
        ref.forward, ref.original_forward = (below if each is hook.wrapper else each for each in both)
    if forward is None:
        vars(module).pop("forward", None)
    else:
        module.forward = below if forward is hook.wrapper else forward


H = TypeVar("H", bound=Passage)


def found_on(module: nn.Module | None, kind: type[H]) -> H | None:
    """Return the live hook of that kind on `module`, if there is one."""
    registry = vars(module).get("_diffusers_hook") if module is not None else None
    hooks = registry.hooks.values() if registry is not None else ()
    return next((hook for hook in hooks if isinstance(hook, kind) and hook.alive), None)
