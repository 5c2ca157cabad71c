"""Weight changes of single layers in a denoiser or text encoder, as solved for by UCE and RECE or trained by ESD.

The model's own weights are never written. While an eraser is attached, the layer computes with a cached sum of weights
and change. So detaching restores every bit, and generation takes no longer than without the eraser.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from excise.erasers.edits.weights import WeightEdit
from excise.erasers.guard.weights_watch import version_of
from excise.erasers.hooks.context import CALL
from excise.erasers.hooks.edit_hook import EditHook, Edits
from excise.erasers.hooks.setting import Setting, image
from excise.erasers.hooks.timestep import TimestepHook
from excise.erasers.hooks.wrapping import found_on
from excise.errors import ExciseError
from excise.sites.denoiser import denoiser_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from excise.erasers.hooks.host import Host

KEPT = 2
"""Number of sums cached per layer, not counting those of images in progress: two settings may alternate, the canary's
and the generation's."""


class WeightHook(EditHook):
    """An edit of a layer's weights."""

    edit: WeightEdit
    on_device: WeightEdit

    def amount(self) -> float:
        """Count the run, and return the factor of ΔW in it: 0 leaves the layer as it is."""
        if not self.acts:
            return 0.0
        self.counters.add(1)
        return self.attachment.strength

    def by_row(self) -> Tensor | None:
        """Return the factors `[B]` of ΔW if they differ between rows of the batch. They add to `amount`."""
        return None


class TextWeightHook(WeightHook):
    """An edit of the weights of a text encoder's layer, for both guidance branches."""

    def amount(self) -> float:
        # Only counts the run: the branch does not matter.
        if (call := CALL.get()) is not None:
            call.next_branch(self)
        return super().amount()


@dataclass(eq=False)
class Sum:
    """Weights with their changes added."""

    made: Tensor
    source: Any
    """Weak reference to the memory of the weights without the changes. While it exists, no other memory can have the
    same key."""
    images: weakref.WeakSet[Setting] = field(default_factory=weakref.WeakSet)
    """Images in progress that use it."""


class Summed(Edits):
    """The edits of one layer's weights, whose sum the layer computes with."""

    keeps = True

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[Any, Sum] = {}
        """The most recently used last."""
        self._lock = threading.Lock()

    @classmethod
    def join(cls, module: nn.Module, hook: EditHook) -> Self:
        if "forward" in vars(module) and found_on(module, cls) is None:
            raise ExciseError(
                f"{hook.edit.site.key} is wrapped already, by an offloading or another hook, which an edit of weights "
                "would bypass; attach the eraser first"
            )
        return super().join(module, hook)

    def new_forward(self, module: nn.Module, state: Tensor) -> Tensor:
        """Replace the layer's `forward`."""
        weight = self.through(module.weight)  # type: ignore[arg-type]
        if isinstance(module, nn.Conv2d):
            made: Tensor = module._conv_forward(state, weight, module.bias)
        else:
            made = F.linear(state, weight, module.bias)  # type: ignore[arg-type]
        for hook in self.hooks:
            if isinstance(hook, WeightHook) and (amounts := hook.by_row()) is not None:
                hook.move(state.device)
                more = added(module, hook.on_device, state)
                amounts = amounts.to(more).repeat_interleave(len(more) // len(amounts))
                made = made + amounts.view(-1, *[1] * (more.ndim - 1)) * more
        return made

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return output

    def leave(self, module: nn.Module, hook: EditHook) -> None:
        super().leave(module, hook)
        with self._lock:
            self._sums.clear()

    def passed(self, state: Tensor) -> Tensor:
        """Return the edited weight for the layer's own, `state`."""
        amounts = [(hook, amount) for hook in self.hooks if isinstance(hook, WeightHook) and (amount := hook.amount())]
        if not amounts:
            return state
        # An address alone does not name a weight: it may have been written to, or freed and used again.
        source = StorageWeakRef(state.untyped_storage())  # type: ignore[no-untyped-call]
        weight = source.cdata, state.storage_offset(), version_of(state), state.device, state.dtype
        which = (*weight, *((hook.attachment.number, id(hook.edit), amount) for hook, amount in amounts))
        with self._lock:
            known = self._sums.get(which)
        if known is None:
            known = Sum(self._summed(state, amounts), source)
        if (now := image()) is not None:
            known.images.add(now)
        with self._lock:
            self._sums.pop(which, None)
            self._sums[which] = known
            if len(self._sums) > KEPT:
                self._prune()
        return known.made

    def _prune(self) -> None:
        """Drop sums that no image uses, except the latest. Call it with the lock held."""
        sums = {key: known for key, known in self._sums.items() if not known.source.expired()}
        idle = [key for key, known in sums.items() if not known.images]
        dropped = set(idle[:-KEPT])
        self._sums = {key: known for key, known in sums.items() if key not in dropped}

    def _summed(self, state: Tensor, amounts: Sequence[tuple[WeightHook, float]]) -> Tensor:
        """Return the weights `state` with these changes."""
        made = state.detach().float()
        for hook, amount in amounts:
            made = made + amount * hook.edit.to(state.device).of(state)
        made = made.to(state.dtype)
        if not bool(torch.isfinite(made).all()):
            raise ExciseError(
                f"the edited weights of {self.hooks[0].edit.site.key} are not finite; use a smaller strength or float32"
            )
        return made


def added(layer: nn.Module, edit: WeightEdit, state: Tensor) -> Tensor:
    """Apply ΔW to a layer's input `[B, ...]`, through its two factors if it has them."""
    if edit.up is None or edit.down is None:
        parts = [edit.of(layer.weight).to(state)]  # type: ignore[arg-type]
    else:
        parts = [edit.down.to(state), edit.up.to(state)]
    if isinstance(layer, nn.Conv2d):
        made: Tensor = layer._conv_forward(state, parts[0].reshape(-1, *layer.weight.shape[1:]), None)
        return made if len(parts) == 1 else F.conv2d(made, parts[1][..., None, None])
    for part in parts:
        state = F.linear(state, part)
    return state


def put(attachment: Host, edit: WeightEdit, layer: nn.Module) -> tuple[WeightHook, Callable[[], None]]:
    """Install the edit at its layer. Return its hook, and a function that removes it."""
    return put_hook((TextWeightHook if edit.site.part == "text" else WeightHook)(attachment, edit), layer)


def put_hook(hook: WeightHook, layer: nn.Module) -> tuple[WeightHook, Callable[[], None]]:
    """Install the hook of an edit at its layer. Raise ExciseError if its weights have another shape."""
    hook.edit.of(layer.weight)  # type: ignore[arg-type]
    if hook.edit.site.part == "text":
        summed = Summed.join(layer, hook)
        return hook, lambda: summed.leave(layer, hook)
    denoiser = denoiser_of(hook.attachment.pipe, hook.edit.site.component)[1]
    timesteps, sums = TimestepHook.join(denoiser, hook), Summed.join(layer, hook)

    def off() -> None:
        sums.leave(layer, hook)
        timesteps.leave(denoiser, hook)

    return hook, off
