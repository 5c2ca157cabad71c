"""The kinds of edits there are, by the names that saved erasers give them, and putting each at its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from excise.erasers.apply import language_model, skips, weights, weights_by_prompt
from excise.erasers.apply.conditioning import FilterHook, ProjectionHook
from excise.erasers.apply.guidance import GuidanceHook
from excise.erasers.apply.skips import modulated_at
from excise.erasers.edits.block_sae import BlockEdit
from excise.erasers.edits.blocklist import FilterEdit
from excise.erasers.edits.gated_sae import GatedSAEEdit
from excise.erasers.edits.guidance import GuidanceEdit
from excise.erasers.edits.projection import ProjectionEdit
from excise.erasers.edits.registry import Edit
from excise.erasers.edits.skips import ModulationEdit
from excise.erasers.edits.text_sae import SAEEdit
from excise.erasers.edits.vectors import DirectionEdit, VectorEdit
from excise.erasers.edits.weights import CopyEdit, PermeableEdit, WeightEdit
from excise.erasers.hooks import timestep, unet_call, wrapping
from excise.erasers.hooks.edit_hook import EditHook
from excise.sites.denoiser import attention_at, layer_at, module_at, unet_at

if TYPE_CHECKING:
    from excise.erasers.attachment import Attachment


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
        Kind(SAEEdit, module_at, language_model.put),
        Kind(GatedSAEEdit, module_at, wrapping.put),
        Kind(VectorEdit, module_at, wrapping.put),
        Kind(BlockEdit, module_at, timestep.put),
        Kind(DirectionEdit, attention_at, timestep.put),
        Kind(WeightEdit, layer_at, weights.put),
        Kind(PermeableEdit, layer_at, weights_by_prompt.put),
        Kind(GuidanceEdit, unet_at, unet_call.put(GuidanceHook)),
        Kind(FilterEdit, unet_at, unet_call.put(FilterHook)),
        Kind(ProjectionEdit, unet_at, unet_call.put(ProjectionHook)),
        Kind(ModulationEdit, modulated_at, skips.put),
        Kind(CopyEdit, layer_at, skips.put_copy),
    )
}


def module_of(pipe: Any, edit: Edit) -> nn.Module:
    """The live module that the edit acts on. Raises ExciseError where the pipeline lacks it, or its width differs."""
    return KINDS[edit.kind].module(pipe, edit.site)


def put(attachment: Attachment, edit: Edit, module: nn.Module) -> tuple[EditHook, Callable[[], None]]:
    """Put the edit at its module; what comes back with its hook takes it off again."""
    return KINDS[edit.kind].put(attachment, edit, module)
