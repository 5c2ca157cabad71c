"""The kinds of edits there are, by the names that saved erasers give them, and putting each at its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from excise.erasers import clock, generation, hooks, modulation, permeable, runs, weights
from excise.erasers.block import BlockEdit
from excise.erasers.blocklist import FilterEdit, FilterHook
from excise.erasers.edit import SAEEdit
from excise.erasers.gated import GatedSAEEdit
from excise.erasers.guidance import GuidanceEdit, GuidanceHook
from excise.erasers.hooks import EditHook
from excise.erasers.modulation import CopyEdit, ModulationEdit, modulated_at
from excise.erasers.permeable import PermeableEdit
from excise.erasers.projection import ProjectionEdit, ProjectionHook
from excise.erasers.runs import unet_at
from excise.erasers.steering import DirectionEdit, VectorEdit
from excise.erasers.weights import WeightEdit
from excise.sites.blocks import attention_at, layer_at, module_at

if TYPE_CHECKING:
    from excise.erasers.attachment import Attachment

TextEdit = SAEEdit | VectorEdit | WeightEdit
Edit = TextEdit | BlockEdit | DirectionEdit | GuidanceEdit | FilterEdit | ProjectionEdit | ModulationEdit


@dataclass(frozen=True)
class Kind:
    """How edits of one class are found a module and put there."""

    edit: type[Edit]
    module: Callable[[Any, Any], nn.Module]
    """The live one that it acts on, of a pipeline and a Site."""
    put: Callable[[Attachment, Any, Any], tuple[EditHook, Callable[[], None]]]
    """Puts an edit at that module; what comes back with its hook takes it off again."""


KINDS: dict[str, Kind] = {
    kind.edit.kind: kind
    for kind in (
        Kind(SAEEdit, module_at, generation.put),
        Kind(GatedSAEEdit, module_at, hooks.put),
        Kind(VectorEdit, module_at, hooks.put),
        Kind(BlockEdit, module_at, clock.put),
        Kind(DirectionEdit, attention_at, clock.put),
        Kind(WeightEdit, layer_at, weights.put),
        Kind(PermeableEdit, layer_at, permeable.put),
        Kind(GuidanceEdit, unet_at, runs.put(GuidanceHook)),
        Kind(FilterEdit, unet_at, runs.put(FilterHook)),
        Kind(ProjectionEdit, unet_at, runs.put(ProjectionHook)),
        Kind(ModulationEdit, modulated_at, modulation.put),
        Kind(CopyEdit, layer_at, modulation.put_copy),
    )
}


def module_of(pipe: Any, edit: Edit) -> nn.Module:
    """The live module that the edit acts on. Raises ExciseError where the pipeline lacks it, or its width differs."""
    return KINDS[edit.kind].module(pipe, edit.site)


def put(attachment: Attachment, edit: Edit, module: nn.Module) -> tuple[EditHook, Callable[[], None]]:
    """Put the edit at its module; what comes back with its hook takes it off again."""
    return KINDS[edit.kind].put(attachment, edit, module)
