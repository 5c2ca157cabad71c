"""Where each class of edit acts, and putting an edit there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from excise.erasers.apply import block, language_model, skips, text, weights, weights_by_prompt
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
from excise.erasers.hooks import unet_call
from excise.erasers.hooks.edit_hook import EditHook
from excise.erasers.hooks.host import Host
from excise.pipeline import Pipeline
from excise.sites.denoiser import attention_at, layer_at, module_at, unet_at

Put = Callable[[Host, Any, Any], tuple[EditHook, Callable[[], None]]]
"""Puts an edit at its module; what comes back with its hook takes it off again."""


@dataclass(frozen=True)
class Place:
    """Where edits of one class act."""

    module: Callable[[Any, Any], nn.Module]
    """The live module, of a pipeline and a Site."""
    put: Put


PLACES: dict[type[Edit], Place] = {
    SAEEdit: Place(module_at, language_model.put),
    GatedSAEEdit: Place(module_at, text.put),
    VectorEdit: Place(module_at, text.put),
    BlockEdit: Place(module_at, block.put),
    DirectionEdit: Place(attention_at, block.put),
    WeightEdit: Place(layer_at, weights.put),
    PermeableEdit: Place(layer_at, weights_by_prompt.put),
    GuidanceEdit: Place(unet_at, unet_call.put(GuidanceHook)),
    FilterEdit: Place(unet_at, unet_call.put(FilterHook)),
    ProjectionEdit: Place(unet_at, unet_call.put(ProjectionHook)),
    ModulationEdit: Place(modulated_at, skips.put),
    CopyEdit: Place(layer_at, skips.put_copy),
}


def module_of(pipe: Pipeline, edit: Edit) -> nn.Module:
    """The live module that the edit acts on. Raises ExciseError where the pipeline lacks it, or its width differs."""
    return PLACES[type(edit)].module(pipe, edit.site)


def put(attachment: Host, edit: Edit, module: nn.Module) -> tuple[EditHook, Callable[[], None]]:
    """Put the edit at its module; what comes back with its hook takes it off again."""
    return PLACES[type(edit)].put(attachment, edit, module)
