"""Edits of a text encoder's states."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from excise.erasers.edits.base import Branch
from excise.erasers.edits.text_sae import SAEEdit
from excise.erasers.hooks.context import ERASED, SPARED, last_call
from excise.erasers.hooks.edit_hook import EditHook, Edits

if TYPE_CHECKING:
    from excise.erasers.edits.vectors import AffineEdit, VectorEdit
    from excise.erasers.hooks.host import Host


class TextHook(EditHook):
    """An edit of a text encoder, which treats the branches of guidance differently."""

    edit: SAEEdit | VectorEdit | AffineEdit
    on_device: SAEEdit | VectorEdit | AffineEdit

    def delta(self, state: Tensor) -> Tensor | None:
        self.branch()
        return super().delta(state)

    def branch(self) -> Branch:
        """Return the guidance branch of this encoder run."""
        call = last_call()
        self._here.branch = "conditional" if call is None else call.next_branch(self)
        made: Branch = self._here.branch
        return made

    def of(self, state: Tensor) -> Tensor | None:
        edit, branch, strength = self.on_device, self._here.branch, self.attachment.strength
        if branch == "unconditional" and edit.uncond != "same":
            with torch.no_grad():
                conditional = edit.delta(state, strength, sae=self.attachment.sae)
            if conditional is not None and bool(conditional.any()):
                SPARED.yes, SPARED.runs = True, getattr(SPARED, "runs", 0) + 1
        delta = edit.delta(state, strength, branch=branch, sae=self.attachment.sae)
        if delta is not None and branch == "conditional":
            moved, before = delta.detach().flatten(1).any(1).cpu(), getattr(ERASED, "prompts", None)
            if bool(moved.any()):
                ERASED.runs = getattr(ERASED, "runs", 0) + 1
                ERASED.prompts = moved if before is None or len(before) != len(moved) else moved | before
        return delta


def put(
    attachment: Host, edit: SAEEdit | VectorEdit | AffineEdit, module: nn.Module
) -> tuple[TextHook, Callable[[], None]]:
    """Install the edit at its layer. Return its hook, and a function that removes it."""
    hook = TextHook(attachment, edit)
    edits = Edits.join(module, hook)
    return hook, lambda: edits.leave(module, hook)
