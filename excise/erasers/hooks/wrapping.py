"""Hooks that wrap a module's `forward` (diffusers' HookRegistry), and stay whole under `torch.compile`.

Transformers >= 5 can take `hidden_states` before a plain forward hook has run; a wrapped `forward` it cannot pass by.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from excise.erasers.edits.text_sae import Branch, SAEEdit, without
from excise.erasers.guard.encode_prompt import is_muted
from excise.erasers.hooks.context import Call, last_call
from excise.errors import EraserDidNotFire, ExciseError

if TYPE_CHECKING:
    from typing_extensions import Self

    from excise.erasers.apply.registry import Edit
    from excise.erasers.attachment import Attachment
    from excise.erasers.edits.vectors import VectorEdit

_LIVE: weakref.WeakValueDictionary[int, Passage] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()
SPARED = threading.local()
"""`SPARED.yes`: in this thread's run of an encoder an unconditional prompt was left alone that says the concept.
`SPARED.runs`: how many runs in this thread left one alone."""
ERASED = threading.local()
"""`ERASED.runs`: how many runs of an encoder in this thread had something erased from a prompt.
`ERASED.prompts`: from which of the batch it was in the run under way, `[B]`; None where from none."""


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


class EditHook:
    """One edit at one module, and what it did."""

    def __init__(self, attachment: Attachment, edit: Edit) -> None:
        self.attachment, self.edit, self.moved = attachment, edit, edit
        self._here = threading.local()
        self._counting = threading.Lock()
        self.rows, self.norm = 0, 0.0
        """Rows edited, and the sum over them of the L2 norm of what was subtracted."""

    def begin(self) -> None:
        """A prompt is about to be encoded in this thread: another picture is drawn from here on."""

    def heard(self, call: Call, made: Any) -> None:
        """What the pipeline's `encode_prompt` made of a prompt in this thread."""

    @property
    def runs(self) -> int:
        """How often it ran in this thread."""
        return getattr(self._here, "runs", 0)

    @property
    def acts(self) -> bool:
        """Whether it edits in this run, which is counted."""
        self._here.runs = self.runs + 1
        return self.attachment.active and not is_muted(self.attachment, self.edit.site.part)

    def delta(self, state: Tensor) -> Tensor | None:
        """What it subtracts from `state` in this run; None where it leaves every bit alone."""
        if not self.acts:
            return None
        if self.moved.device != state.device:
            self.moved = self.edit.to(state.device)
        delta = self.of(state)
        if delta is not None:
            norms = delta.detach().float().norm(dim=-1)
            rows, norm = int((norms > 0).sum()), float(norms.sum())
            with self._counting:
                self.rows += rows
                self.norm += norm
        return delta

    def of(self, state: Tensor) -> Tensor | None:
        """The edit's own `delta` at this moment."""
        raise NotImplementedError


def unrun(hook: EditHook) -> EraserDidNotFire:
    """What is raised where a module that is edited did not run."""
    return EraserDidNotFire(
        f"eraser {hook.attachment.eraser.name!r} saw no run of {hook.edit.site.key}; something unhooked or by-passed "
        "it, so nothing is rendered"
    )


class TextHook(EditHook):
    """An edit of a text encoder, which treats the branches of guidance differently."""

    edit: SAEEdit | VectorEdit
    moved: SAEEdit | VectorEdit

    def delta(self, state: Tensor) -> Tensor | None:
        self.branch()
        return super().delta(state)

    def branch(self) -> Branch:
        """What this run of the encoder is for."""
        call = last_call()
        self._here.branch = "conditional" if call is None else call.next_branch(self)
        made: Branch = self._here.branch
        return made

    def of(self, state: Tensor) -> Tensor | None:
        edit, branch, strength = self.moved, self._here.branch, self.attachment.strength
        if branch == "unconditional" and edit.uncond != "same":
            with torch.no_grad():
                meant = edit.delta(state, strength, sae=self.attachment.sae)
            if meant is not None and bool((meant != 0).any()):
                SPARED.yes, SPARED.runs = True, getattr(SPARED, "runs", 0) + 1
        delta = edit.delta(state, strength, branch=branch, sae=self.attachment.sae)
        if delta is not None and branch == "conditional" and bool((delta.detach() != 0).any()):
            ERASED.runs = getattr(ERASED, "runs", 0) + 1
            moved, before = (delta.detach() != 0).flatten(1).any(1).cpu(), getattr(ERASED, "prompts", None)
            ERASED.prompts = moved if before is None or len(before) != len(moved) else moved | before
        return delta


class Shared(Passage):
    """A passage at one module, shared by the edits of everything that is attached to the pipelines it is part of, in
    the order of their erasers' digests: whichever was attached first, the bits come out the same."""

    def __init__(self) -> None:
        super().__init__()
        self.hooks: tuple[EditHook, ...] = ()

    @classmethod
    def join(cls, module: nn.Module, hook: EditHook) -> Self:
        """Put an edit at `module`."""
        shared = found_on(module, cls)
        if shared is None:
            shared = cls()
            install(module, shared)
        shared.hooks = tuple(sorted((*shared.hooks, hook), key=lambda own: own.attachment.eraser.digest))
        return shared

    def leave(self, module: nn.Module, hook: EditHook) -> None:
        """Take an edit off; the last one out leaves no trace."""
        self.hooks = tuple(own for own in self.hooks if own is not hook)
        if not self.hooks:
            remove(module, self)


class Edits(Shared):
    """The edits at one module. All of them read the state as the model made it and are subtracted together."""

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """The module's output, edited."""
        state = output[0] if isinstance(output, tuple) else output
        edited = self.through(state)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    def passed(self, state: Tensor) -> Tensor:
        hooks = self.hooks
        deltas = [delta for hook in hooks if (delta := hook.delta(state)) is not None]
        if not deltas:
            return state
        edited = without(state, sum(deltas[1:], deltas[0]))
        if not bool(torch.isfinite(edited).all()):
            where = hooks[0].edit.site.key
            raise ExciseError(f"states at {where} are not finite numbers; nothing is rendered from them")
        return edited


def put(attachment: Attachment, edit: SAEEdit | VectorEdit, module: nn.Module) -> tuple[TextHook, Callable[[], None]]:
    """Put the edit at its layer; what comes back with its hook takes it off again."""
    hook = TextHook(attachment, edit)
    edits = Edits.join(module, hook)
    return hook, lambda: edits.leave(module, hook)


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
