"""Weight changes of single layers in a denoiser or text encoder, as solved for by UCE and RECE or trained by ESD.

The model's own weights are never written. While an eraser is attached, the layer computes with a cached sum of weights
and change. So detaching restores every bit, and generation takes no longer than without the eraser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.erasers.edits.weights import WeightEdit
from excise.erasers.hooks.context import CALL
from excise.erasers.hooks.edit_hook import EditHook, Edits
from excise.erasers.hooks.timestep import TimestepHook
from excise.erasers.hooks.wrapping import found_on
from excise.errors import ExciseError
from excise.sites.denoiser import denoiser_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from excise.erasers.hooks.host import Host

KEPT = 2
"""Number of sums cached per layer: two settings may alternate, the canary's and the generation's."""


class WeightHook(EditHook):
    """An edit of a layer's weights."""

    edit: WeightEdit
    on_device: WeightEdit

    def amount(self) -> float:
        """Count the run, and return the factor of ΔW in it: 0 leaves the layer as it is."""
        if not self.acts:
            return 0.0
        self.rows += 1
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


class Summed(Edits):
    """The edits of one layer's weights, whose sum the layer computes with."""

    keeps = True

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[Any, Tensor] = {}

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
                more = added(module, hook.edit, state)
                amounts = amounts.to(more).repeat_interleave(len(more) // len(amounts))
                made = made + amounts.view(-1, *[1] * (more.ndim - 1)) * more
        return made

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return output

    def leave(self, module: nn.Module, hook: EditHook) -> None:
        super().leave(module, hook)
        self._sums.clear()

    def passed(self, state: Tensor) -> Tensor:
        """Return the edited weight for the layer's own, `state`."""
        amounts = [(hook, amount) for hook in self.hooks if isinstance(hook, WeightHook) and (amount := hook.amount())]
        if not amounts:
            return state
        which = (state.data_ptr(), state.device, state.dtype, *((id(hook), amount) for hook, amount in amounts))
        if (known := self._sums.get(which)) is not None:
            return known
        made = state.detach().float()
        for hook, amount in amounts:
            made = made + amount * hook.edit.to(state.device).of(state)
        made = made.to(state.dtype)
        if not bool(torch.isfinite(made).all()):
            raise ExciseError(
                f"the edited weights of {self.hooks[0].edit.site.key} are not finite; use a smaller strength or float32"
            )
        self._sums = {**dict(list(self._sums.items())[1 - KEPT :]), which: made}
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
