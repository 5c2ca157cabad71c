"""Hooks that wrap a module's `forward` (diffusers' HookRegistry), and stay whole under `torch.compile`.

Transformers >= 5 can take `hidden_states` before a plain forward hook has run; a wrapped `forward` it cannot pass by.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from excise.erasers.edit import SAEEdit
from excise.erasers.guard import CALL, is_muted
from excise.errors import ExciseError

if TYPE_CHECKING:
    from excise.erasers.attachment import Attachment

_LIVE: weakref.WeakValueDictionary[int, Passage] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


class Passage(ModelHook):  # type: ignore[misc]
    """A hook through which tensors pass; what happens to them is decided anew at every run, compiled or not."""

    def __init__(self) -> None:
        super().__init__()
        self._number = next(_NUMBERS)
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

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ExciseError(
            "a pipeline with an eraser attached cannot be copied or pickled; detach it, and attach it to the copy"
        )


@torch.library.custom_op("excise::through", mutates_args=())
def _operator(state: Tensor, number: int) -> Tensor:
    made = _LIVE[number].passed(state)
    return made.clone() if made is state else made


@_operator.register_fake
def _(state: Tensor, number: int) -> Tensor:
    return torch.empty_like(state)


class EditHook(Passage):
    """Applies one edit to the output of the wrapped module."""

    def __init__(self, attachment: Attachment, edit: SAEEdit) -> None:
        super().__init__()
        self.attachment, self.edit, self._moved = attachment, edit, edit
        self.rows = self.runs = 0
        self.norm = 0.0
        """Sum over the edited rows of the L2 norm of what was subtracted."""

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        state = output[0] if isinstance(output, tuple) else output
        edited = self.through(state)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    def passed(self, state: Tensor) -> Tensor:
        call = CALL.get()
        branch = "conditional" if call is None else call.next_branch(self)
        self.runs += 1
        if not self.attachment.active or is_muted(self.attachment):
            return state
        if self._moved.W_enc.device != state.device:
            self._moved = self.edit.to(state.device)
        edited = self._moved.apply(state, self.attachment.strength, branch=branch, sae=self.attachment.sae)
        if not bool(torch.isfinite(edited).all()):
            raise ExciseError(f"states at {self.edit.site.key} are not finite numbers; nothing is rendered from them")
        with torch.no_grad():
            changed = (edited != state).any(-1)
            self.rows += int(changed.sum())
            self.norm += float((edited - state)[changed].float().norm(dim=-1).sum())
        return edited


def edits_on(module: nn.Module) -> list[EditHook]:
    """The edits attached to `module`, by whichever pipeline shares it."""
    registry = vars(module).get("_diffusers_hook")
    found = [hook for hook in registry.hooks.values() if isinstance(hook, EditHook)] if registry is not None else []
    return [hook for hook in found if hook.attachment.attached]


def install(module: nn.Module, hook: ModelHook, name: str) -> None:
    """Wrap `module.forward` with a hook, remembering whether the registry it needs was there before."""
    fresh = "_diffusers_hook" not in vars(module)
    if fresh:
        module._diffusers_hook = HookRegistry(module)
    registry = vars(module)["_diffusers_hook"]
    if fresh:
        registry.excise_made_it = True
    registry.register_hook(hook, name)
    hook.wrapper = vars(module)["forward"]


def remove(module: nn.Module, name: str) -> None:
    """Unhook, and leave no trace where the registry was ours and nobody else uses it now.

    Where somebody wrapped `forward` once more since (an offloading of accelerate's), our wrapper stays below it and
    lets everything pass: taking it out would take theirs along.
    """
    registry: HookRegistry | None = vars(module).get("_diffusers_hook")
    hook = registry.get_hook(name) if registry is not None else None
    if registry is None or hook is None:
        return
    newest = next(reversed(registry.hooks.values()))
    if hook is newest and vars(module).get("forward") is not hook.wrapper:
        hook.fn_ref.pre_forward = lambda module, *args, **kwargs: (args, kwargs)
        hook.fn_ref.post_forward = lambda module, output: output
        return
    registry.remove_hook(name, recurse=False)
    if registry.hooks:
        return
    own = vars(module).get("forward")
    if getattr(own, "__func__", None) is type(module).forward:
        del module.forward
    if getattr(registry, "excise_made_it", False):
        del module._diffusers_hook
