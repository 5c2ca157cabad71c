"""Edits at work: a hook for each edit, and the passage that the edits of one module share."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from excise.erasers.edits.base import without
from excise.erasers.hooks.context import Call, is_muted
from excise.errors import EraserDidNotFire, ExciseError

if TYPE_CHECKING:
    from typing_extensions import Self

    from excise.erasers.edits.registry import Edit
    from excise.erasers.hooks.host import Acting, Host
from excise.erasers.hooks.wrapping import Passage, found_on, install, remove


class EditHook:
    """One edit at one module, and what it did."""

    def __init__(self, attachment: Host, edit: Edit) -> None:
        self.attachment, self.edit, self.moved = attachment, edit, edit
        self._here = threading.local()
        self._counting = threading.Lock()
        self.rows, self.norm = 0, 0.0
        """Rows edited, and the sum over them of the L2 norm of what was subtracted."""

    def begin(self) -> None:
        """A prompt is about to be encoded in this thread: another picture is drawn from here on."""

    def on_encoded(self, call: Call, made: Any) -> None:
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


def unrun(hook: Acting) -> EraserDidNotFire:
    """What is raised where a module that is edited did not run."""
    return EraserDidNotFire(
        f"eraser {hook.attachment.eraser.name!r} saw no run of {hook.edit.site.key}; something unhooked or by-passed "
        "it, so nothing is rendered"
    )


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
