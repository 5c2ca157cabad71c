"""Edits of what a denoiser's blocks and layers return, at every denoising step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from excise.erasers.apply.shared_gates import SharedGates
from excise.erasers.edits.adapters import AdapterEdit
from excise.erasers.edits.block_replacement import ReplacementEdit
from excise.erasers.edits.block_sae import BlockEdit, OpenGates
from excise.erasers.edits.projection import ValueEdit
from excise.erasers.edits.vectors import DirectionEdit, GatedDirectionEdit
from excise.erasers.hooks.edit_hook import EditHook, Edits
from excise.erasers.hooks.setting import image
from excise.errors import InvalidSetting
from excise.sites.denoiser import as_patches, denoiser_of, from_patches

if TYPE_CHECKING:
    from excise.erasers.hooks.host import Host
from excise.erasers.hooks.timestep import TimestepHook


class BlockHook(EditHook):
    """An edit of a block, which reads the timestep of its denoiser."""

    edit: BlockEdit | DirectionEdit
    on_device: BlockEdit | DirectionEdit
    timesteps: TimestepHook

    def begin(self) -> None:
        """Close all gates for another image."""
        self._gates().begin()

    def _gates(self) -> OpenGates:
        """Return the gates of this thread: this block's own, or those that all blocks of a gated direction share."""
        if not isinstance(self.edit, GatedDirectionEdit):
            here, kind = self._here, OpenGates
        else:
            blocks = (hook for hook in self.timesteps.hooks if hook.attachment is self.attachment)
            here, kind = next(hook for hook in blocks if isinstance(hook.edit, GatedDirectionEdit))._here, SharedGates
        if not hasattr(here, "opened"):
            here.opened = kind()
        gates: OpenGates = here.opened
        return gates

    def of(self, state: Tensor) -> Tensor | None:
        attachment, gates = self.attachment, self._gates()
        if isinstance(gates, SharedGates):
            gates.belong_to(image())
        known = {"sae": attachment.sae, "opened": gates}
        return self.on_device.delta(state, attachment.strength, step=self.timesteps.now, **known)


class LayerHook(EditHook):
    """An edit of a layer's output that is the same at every step."""

    edit: ValueEdit | AdapterEdit
    on_device: ValueEdit | AdapterEdit
    timesteps: TimestepHook

    def of(self, state: Tensor) -> Tensor | None:
        return self.on_device.delta(state, self.attachment.strength)


def put(
    attachment: Host, edit: BlockEdit | DirectionEdit | ValueEdit | AdapterEdit, block: nn.Module
) -> tuple[BlockHook | LayerHook, Callable[[], None]]:
    """Install the edit at its block or layer. Return its hook, and a function that removes it.

    Raises InvalidSetting for a second edit that replaces patches of the block.
    """
    others = BlockEdits.listed_on(block) if attachment.listed else []
    if isinstance(edit, ReplacementEdit) and (
        second := [one for one in others if isinstance(one.edit, ReplacementEdit)]
    ):
        raise InvalidSetting(
            f"erasers {attachment.eraser.name!r} and {second[0].attachment.eraser.name!r} both replace patches of "
            f"{edit.site.path}: each would put in place what the other takes away; detach one"
        )
    _, denoiser = denoiser_of(attachment.pipe, edit.site.component)
    everywhere = isinstance(edit, ValueEdit | AdapterEdit)
    hook = LayerHook(attachment, edit) if everywhere else BlockHook(attachment, edit)
    hook.timesteps = timesteps = TimestepHook.join(denoiser, hook)
    edits = BlockEdits.join(block, hook)

    def off() -> None:
        edits.leave(block, hook)
        timesteps.leave(denoiser, hook)

    return hook, off


class BlockEdits(Edits):
    """The edits at one block, which read its output as patches, whatever its shape."""

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        patches = as_patches(output)
        edited = self.through(patches)
        return output if edited is patches else from_patches(edited, output)

    def require(self, finite: Tensor, hook: EditHook) -> None:
        assert isinstance(hook, BlockHook | LayerHook)
        hook.timesteps.ask_later(hook, finite)
