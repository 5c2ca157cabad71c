"""The kinds of edits there are, by the names that saved erasers give them, and putting each at its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from excise.erasers import clock, hooks, weights
from excise.erasers.block import BlockEdit
from excise.erasers.edit import SAEEdit
from excise.erasers.hooks import EditHook
from excise.erasers.weights import WeightEdit
from excise.sites.blocks import layer_at, module_at

if TYPE_CHECKING:
    from excise.erasers.attachment import Attachment

Edit = SAEEdit | BlockEdit | WeightEdit
KINDS: dict[str, type[SAEEdit] | type[BlockEdit] | type[WeightEdit]] = {
    kind.kind: kind for kind in (SAEEdit, BlockEdit, WeightEdit)
}


def module_of(pipe: Any, edit: Edit) -> nn.Module:
    """The live module that the edit acts on. Raises ExciseError where the pipeline lacks it, or its width differs."""
    return layer_at(pipe, edit.site) if isinstance(edit, WeightEdit) else module_at(pipe, edit.site)


def put(attachment: Attachment, edit: Edit) -> tuple[EditHook, Callable[[], None]]:
    """Put the edit at its place; what comes back with its hook takes it off again."""
    if isinstance(edit, WeightEdit):
        return weights.put(attachment, edit)
    if isinstance(edit, BlockEdit):
        return clock.put(attachment, edit)
    return hooks.put(attachment, edit)
