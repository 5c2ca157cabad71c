"""Edits in action: a hook for each edit, and the module hook that all edits of one module share."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from excise.erasers.edits.base import without
from excise.erasers.hooks.context import Call, is_muted, is_proving
from excise.erasers.hooks.counters import Counters
from excise.erasers.hooks.wrapping import Passage, found_on, install, remove
from excise.errors import EraserDidNotFire, ExciseError

if TYPE_CHECKING:
    from typing_extensions import Self

    from excise.erasers.edits.registry import Edit
    from excise.erasers.hooks.host import Acting, Host


class EditHook:
    """One edit at one module, and counts of what it did."""

    def __init__(self, attachment: Host, edit: Edit) -> None:
        self.attachment, self.edit = attachment, edit
        self.on_device = edit
        """The edit with its tensors on the device of the latest states."""
        self._counters, self._of_canaries = Counters(), Counters()
        self._here = threading.local()

    @property
    def counters(self) -> Counters:
        """Counts of what it did to prompts. While it is being proved, a separate count of canaries."""
        return self._of_canaries if is_proving(self.attachment) else self._counters

    def prepare(self) -> None:
        """Prepare for all images: read what the edit needs of the pipeline. No lock is held."""

    def begin(self) -> None:
        """Prepare for another image: a prompt is about to be encoded in this thread."""

    def on_encoded(self, call: Call, made: Any) -> None:
        """Take note of `made`, the result of the pipeline's `encode_prompt` in this thread."""

    def on_encoder_run(self, call: Call, component: str, output: Any) -> None:
        """Read a text encoder's output for an `encode_prompt` call without a guard, such as a sibling pipeline's."""

    @property
    def runs(self) -> int:
        """Number of runs in this thread."""
        return getattr(self._here, "runs", 0)

    @property
    def acts(self) -> bool:
        """Whether it edits in this run. Reading it counts the run."""
        self._here.runs = self.runs + 1
        return self.attachment.active and not is_muted(self.attachment, self.edit.site.part)

    def delta(self, state: Tensor) -> Tensor | None:
        """Return what to subtract from `state` in this run, or None to leave every bit as it is."""
        if not self.acts:
            return None
        self.move(state.device)
        delta = self.of(state)
        if delta is not None:
            self.counters.add_delta(delta)
        return delta

    def move(self, device: torch.device) -> None:
        """Have `on_device` on this device."""
        if self.on_device.device != device:
            with torch.inference_mode(False):  # a copy that was made in inference mode has no gradients
                self.on_device = self.edit.to(device)

    def of(self, state: Tensor) -> Tensor | None:
        """Return the edit's `delta` under the current settings."""
        raise NotImplementedError


def did_not_run(hook: Acting) -> EraserDidNotFire:
    """Return the error for an edited module that did not run."""
    return EraserDidNotFire(
        f"eraser {hook.attachment.eraser.name!r} saw no run of {hook.edit.site.key}; something unhooked or bypassed "
        "it, so nothing is rendered"
    )


class Shared(Passage):
    """A module hook shared by the edits of everything attached to pipelines that contain the module.

    The edits are sorted by their erasers' digests, so that the result does not depend on the order of attaching.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hooks: tuple[EditHook, ...] = ()

    @classmethod
    def join(cls, module: nn.Module, hook: EditHook) -> Self:
        """Add an edit at `module`."""
        shared = found_on(module, cls)
        if shared is None:
            shared = cls()
            install(module, shared)
        shared.hooks = tuple(sorted((*shared.hooks, hook), key=lambda each: each.attachment.eraser.digest))
        return shared

    @classmethod
    def listed_on(cls, module: nn.Module) -> list[Any]:
        """Return the edits at `module` whose attachments are neither detached nor on trial."""
        shared = found_on(module, cls)
        return [] if shared is None else [hook for hook in shared.hooks if hook.attachment.listed]

    def leave(self, module: nn.Module, hook: EditHook) -> None:
        """Remove an edit, and with the last one the module hook."""
        self.hooks = tuple(other for other in self.hooks if other is not hook)
        if not self.hooks:
            remove(module, self)


class Edits(Shared):
    """The edits at one module. Each of them reads the model's own state. Their deltas are summed and subtracted."""

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Edit the module's output."""
        state = output[0] if isinstance(output, tuple) else output
        edited = self.through(state)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    def passed(self, state: Tensor) -> Tensor:
        hooks = self.hooks
        deltas = [delta for hook in hooks if (delta := hook.delta(state)) is not None]
        if not deltas:
            return state
        edited = without(state, sum(deltas[1:], deltas[0]))
        self.require((0 * edited.detach()).sum() == 0, hooks[0])  # NaN for a value that is not finite
        return edited

    def require(self, finite: Tensor, hook: EditHook) -> None:
        """Raise ExciseError, now or before the denoiser's prediction is used, if edited states are not finite."""
        if not bool(finite):
            raise not_finite(hook)


def not_finite(hook: Acting) -> ExciseError:
    """Return the error for edited states that are not finite."""
    return ExciseError(f"states at {hook.edit.site.key} are not finite, so nothing is rendered; check dtype and model")
