"""Hooks that wrap a module's `forward` (diffusers' HookRegistry), and stay whole under `torch.compile`.

Transformers >= 5 can take `hidden_states` before a plain forward hook has run; a wrapped `forward` it cannot pass by.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from excise.errors import ExciseError

if TYPE_CHECKING:
    pass

_LIVE: weakref.WeakValueDictionary[int, Passage] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


class Passage(ModelHook):  # type: ignore[misc]
    """A hook through which tensors pass; what happens to them is decided anew at every run, compiled or not."""

    keeps = False
    """Whether it keeps what it makes, so that nobody else may write to it."""

    def __init__(self) -> None:
        super().__init__()
        self._number = next(_NUMBERS)
        self.name, self.alive = f"excise.{self._number}", False
        self.wrapper: Any = None
        self.handles: tuple[RemovableHandle, ...] = ()
        _LIVE[self._number] = self

    def passed(self, state: Tensor) -> Tensor:
        """`state`, or what it is turned into; of the same shape and dtype."""
        raise NotImplementedError

    def through(self, state: Tensor) -> Tensor:
        """`passed`, in one operator that a compiler does not look into: its decisions are not traced, so nothing has
        to be compiled anew when they change."""
        if torch.compiler.is_compiling():
            made: Tensor = _operator(state, self._number)
            return made
        return self.passed(state)

    def through_prediction(self, output: Any) -> Any:
        """`through` for what a denoiser gives: a tuple's first tensor, or a model output's sample."""
        if isinstance(output, tuple):
            return (self.through(output[0]), *output[1:])
        output.sample = self.through(output.sample)
        return output

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ExciseError(
            "a pipeline with an eraser attached cannot be copied or pickled; detach it, and attach it to the copy"
        )


@torch.library.custom_op("excise::through", mutates_args=())
def _operator(state: Tensor, number: int) -> Tensor:
    hook = _LIVE[number]
    made = hook.passed(state)
    return made.clone() if made is state or hook.keeps else made


@_operator.register_fake
def _(state: Tensor, number: int) -> Tensor:
    return torch.empty_like(state)


class Watch(Passage):
    """A passage that notices when it is passed by: accelerate, renewing an offloading, restores the `forward` that it
    found, without what was wrapped around it since. Module hooks stay, and see to it that nothing is missed."""

    def __init__(self) -> None:
        super().__init__()
        self._here = threading.local()

    # Taken off by another thread while the module runs, a hook is still called, and without the keyword arguments.
    def arrived(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        self.arrive(module, args, kwargs or {})

    def departed(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        self.depart(module, args, rest[0] if len(rest) == 2 else {}, rest[-1])

    def arrive(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The module is about to run."""
        if not torch.compiler.is_compiling():
            self._here.met = False

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not torch.compiler.is_compiling():
            self._here.met = True
        return args, kwargs

    def depart(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """The module has run."""
        if not torch.compiler.is_compiling() and not getattr(self._here, "met", True):
            self._here.met = True
            self.passed_by(module, args, kwargs, output)

    def passed_by(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """What to do about a run that the wrapped `forward` did not see."""
        raise NotImplementedError


def install(module: nn.Module, hook: Passage) -> None:
    """Wrap `module.forward` with a hook, remembering whether the registry it needs was there before."""
    fresh = "_diffusers_hook" not in vars(module)
    if fresh:
        module._diffusers_hook = HookRegistry(module)
    registry = vars(module)["_diffusers_hook"]
    if fresh:
        registry.excise_made_it = True
    registry.register_hook(hook, hook.name)
    hook.wrapper, hook.alive = vars(module)["forward"], True
    if isinstance(hook, Watch):
        before = module.register_forward_pre_hook(hook.arrived, with_kwargs=True)
        hook.handles = before, module.register_forward_hook(hook.departed, with_kwargs=True)


def remove(module: nn.Module, hook: Passage) -> None:
    """Unhook, and leave no trace where the registry was ours and nobody else uses it now.

    Where somebody wrapped `forward` once more since (an offloading of accelerate's), our wrapper stays below it and
    lets everything pass: taking it out would take theirs along.
    """
    registry: HookRegistry | None = vars(module).get("_diffusers_hook")
    hook.alive = False
    for handle in hook.handles:
        handle.remove()
    if registry is None or registry.get_hook(hook.name) is not hook:
        return
    newest = next(reversed(registry.hooks.values()))
    if hook is newest and vars(module).get("forward") is not hook.wrapper:
        hook.fn_ref.pre_forward = lambda module, *args, **kwargs: (args, kwargs)
        hook.fn_ref.post_forward = lambda module, output: output
        hook.fn_ref.forward = hook.fn_ref.original_forward or hook.fn_ref.forward
        return
    registry.remove_hook(hook.name, recurse=False)
    if registry.hooks:
        return
    own = vars(module).get("forward")
    if getattr(own, "__func__", None) is type(module).forward:
        del module.forward
    if getattr(registry, "excise_made_it", False):
        del module._diffusers_hook


H = TypeVar("H", bound=Passage)


def found_on(module: nn.Module | None, kind: type[H]) -> H | None:
    """The live hook of that kind on `module`, if there is one."""
    registry = vars(module).get("_diffusers_hook") if module is not None else None
    hooks = registry.hooks.values() if registry is not None else ()
    return next((hook for hook in hooks if isinstance(hook, kind) and hook.alive), None)
