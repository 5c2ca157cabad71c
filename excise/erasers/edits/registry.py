"""Registry of the kinds of edits, by their names in saved erasers."""

from __future__ import annotations

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
from excise.erasers.edits.replacing_sae import ReplacingSAEEdit
from excise.erasers.edits.skips import ModulationEdit
from excise.erasers.edits.text_sae import SAEEdit
from excise.erasers.edits.vectors import AffineEdit, DirectionEdit, GatedDirectionEdit, VectorEdit
from excise.erasers.edits.weights import CopyEdit, PromptScaledEdit, WeightEdit

TextEdit = SAEEdit | VectorEdit | AffineEdit | WeightEdit


Edit = (
    TextEdit
    | BlockEdit
    | DirectionEdit
    | AdapterEdit
    | GuidanceEdit
    | ClassifierEdit
    | PictureEdit
    | FilterEdit
    | ProjectionEdit
    | ValueEdit
    | ModulationEdit
)

KINDS: dict[str, type[Edit]] = {
    edit.kind: edit
    for edit in (
        SAEEdit,
        GatedSAEEdit,
        MergedSAEEdit,
        MergedReplacingEdit,
        OrthogonalSAEEdit,
        ReplacingSAEEdit,
        VectorEdit,
        AffineEdit,
        BlockEdit,
        ReplacementEdit,
        DirectionEdit,
        GatedDirectionEdit,
        AdapterEdit,
        WeightEdit,
        PromptScaledEdit,
        GuidanceEdit,
        ClassifierEdit,
        PictureEdit,
        FilterEdit,
        ProjectionEdit,
        ValueEdit,
        ModulationEdit,
        CopyEdit,
    )
}
"""The class of an edit by its `kind`."""
