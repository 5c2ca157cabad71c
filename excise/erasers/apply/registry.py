"""Registry of the module that each class of edit acts on, and of how it is installed there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from excise.erasers.apply import block, language_model, skips, text, weights, weights_by_prompt
from excise.erasers.apply.conditioning import ClassifierHook, FilterHook, ProjectionHook
from excise.erasers.apply.guidance import GuidanceHook
from excise.erasers.apply.pictures import PictureHook
from excise.erasers.apply.skips import modulated_at
from excise.erasers.edits.adapters import AdapterEdit
from excise.erasers.edits.block_replacement import ReplacementEdit
from excise.erasers.edits.block_sae import BlockEdit
from excise.erasers.edits.blocklist import FilterEdit
from excise.erasers.edits.gated_sae import GatedSAEEdit
from excise.erasers.edits.guidance import ClassifierEdit, GuidanceEdit
from excise.erasers.edits.merged_sae import MergedReplacingEdit, MergedSAEEdit
from excise.erasers.edits.orthogonal_sae import OrthogonalSAEEdit
from excise.erasers.edits.pictures import PictureEdit
from excise.erasers.edits.projection import ProjectionEdit, ValueEdit
from excise.erasers.edits.registry import Edit
from excise.erasers.edits.replacing_sae import ReplacingSAEEdit
from excise.erasers.edits.skips import ModulationEdit
from excise.erasers.edits.text_sae import SAEEdit
from excise.erasers.edits.vectors import AffineEdit, DirectionEdit, GatedDirectionEdit, VectorEdit
from excise.erasers.edits.weights import CopyEdit, PromptScaledEdit, WeightEdit
from excise.erasers.hooks import unet_call
from excise.erasers.hooks.edit_hook import EditHook
from excise.erasers.hooks.host import Host
from excise.pipeline import Pipeline
from excise.sites.denoiser import attention_at, layer_at, module_at, unet_at
from excise.sites.site import is_at

Put = Callable[[Host, Any, Any], tuple[EditHook, Callable[[], None]]]
"""Installs an edit at its module. Returns its hook, and a function that removes it."""


@dataclass(frozen=True)
class Place:
    """The place where edits of one class act."""

    module: Callable[[Any, Any], nn.Module]
    """Finds the live module, given a pipeline and a Site."""
    put: Put


PLACES: dict[type[Edit], Place] = {
    SAEEdit: Place(module_at, language_model.put),
    GatedSAEEdit: Place(module_at, text.put),
    MergedSAEEdit: Place(module_at, text.put),
    MergedReplacingEdit: Place(module_at, text.put),
    OrthogonalSAEEdit: Place(module_at, language_model.put),
    ReplacingSAEEdit: Place(module_at, text.put),
    VectorEdit: Place(module_at, text.put),
    AffineEdit: Place(module_at, text.put),
    BlockEdit: Place(module_at, block.put),
    ReplacementEdit: Place(module_at, block.put),
    DirectionEdit: Place(attention_at, block.put),
    GatedDirectionEdit: Place(attention_at, block.put),
    AdapterEdit: Place(attention_at, block.put),
    ValueEdit: Place(layer_at, block.put),
    WeightEdit: Place(layer_at, weights.put),
    PromptScaledEdit: Place(layer_at, weights_by_prompt.put),
    GuidanceEdit: Place(unet_at, unet_call.put(GuidanceHook)),
    ClassifierEdit: Place(unet_at, unet_call.put(ClassifierHook)),
    PictureEdit: Place(unet_at, unet_call.put(PictureHook)),
    FilterEdit: Place(unet_at, unet_call.put(FilterHook)),
    ProjectionEdit: Place(unet_at, unet_call.put(ProjectionHook)),
    ModulationEdit: Place(modulated_at, skips.put),
    CopyEdit: Place(layer_at, skips.put_copy),
}


def module_of(pipe: Pipeline, edit: Edit) -> nn.Module:
    """Return the live module that the edit acts on. Raise ExciseError if it is missing or has another width."""
    return PLACES[type(edit)].module(pipe, edit.site)


def is_in_place(pipe: Pipeline, edit: Edit, module: nn.Module) -> bool:
    """Whether `module_of` still returns `module`, which it returned before. Asked before every prompt."""
    if edit.site.part == "text" and PLACES[type(edit)].module is module_at and is_at(pipe, edit.site, module):
        return True
    return module_of(pipe, edit) is module


def put(attachment: Host, edit: Edit, module: nn.Module) -> tuple[EditHook, Callable[[], None]]:
    """Install the edit at its module. Return its hook, and a function that removes it."""
    return PLACES[type(edit)].put(attachment, edit, module)
