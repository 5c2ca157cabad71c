"""Refusals before anything is generated: an eraser must cover every path from a prompt to an image."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from torch import nn

from excise.errors import InvalidSetting, WrongModel
from excise.pipeline import Pipeline
from excise.sites.site import DENOISERS, depth, encoder_of, layer_count, refuse_late, taps_of, to_cover

if TYPE_CHECKING:
    from excise.erasers.artefact.record import Artefact
    from excise.erasers.edits.registry import Edit, TextEdit
    from excise.erasers.hooks.host import Host


def absent_from(pipe: Pipeline, eraser: Artefact) -> list[str]:
    """Return the text encoders that the eraser edits and the pipeline was built without.

    For example SD3 without its T5, or the second of two pipelines, which generates from the first one's embeddings.
    """
    edited = dict.fromkeys(edit.site.component for edit in eraser.text_edits)
    return [name for name in edited if name in vars(pipe) and getattr(pipe, name) is None]


def refuse_unless_covered(pipe: Pipeline, eraser: Artefact, edits: Sequence[Edit]) -> None:
    """Raise ExciseError if the eraser does not cover a denoiser or text encoder of the pipeline, or the pipeline reads
    an encoder before the edited layer. `edits` are those whose component the pipeline has."""
    for edit in edits:
        if edit.site.part == "text":
            refuse_late(pipe, edit.site)
    edited = set(eraser.denoisers)
    others = {name for name in DENOISERS if isinstance(getattr(pipe, name, None), nn.Module)}
    if edited and (left := sorted(others - edited)):
        raise WrongModel(
            f"{type(pipe).__name__} also generates with {', '.join(left)}, which this eraser does not edit; "
            "fit one for every denoiser"
        )
    refuse_open_encoders(pipe, eraser)


def refuse_open_encoders(pipe: Pipeline, eraser: Artefact) -> None:
    """Raise WrongModel if the pipeline has a text encoder that an eraser of text encoders does not edit."""
    edited = {edit.site.component for edit in eraser.text_edits}
    if edited and not eraser.denoisers and (open_ones := sorted(set(to_cover(pipe)) - edited)):
        raise WrongModel(
            f"{type(pipe).__name__} also reads {', '.join(open_ones)}, which eraser {eraser.name!r} does not edit; "
            "the concept would pass through there: fit an eraser for every text encoder"
        )


def refuse_early_tap(pipe: Pipeline, edit: TextEdit, clip_skip: Any, eraser: str) -> None:
    """Raise InvalidSetting if `clip_skip` makes the pipeline read a layer before the Site: clip_skip = s reads layer
    L - s."""
    if not clip_skip:
        return
    if not isinstance(clip_skip, Integral):
        raise InvalidSetting(f"clip_skip={clip_skip!r} is not a whole number; give one such as 1")
    if clip_skip < 0:
        raise InvalidSetting(
            f"clip_skip={clip_skip} counts from the first layer, which no eraser reaches; give at least 0"
        )
    at, component = depth(pipe, edit.site), edit.site.component
    taps = taps_of(pipe, component) or [layer_count(encoder_of(pipe, component))]
    if at is None or at > min(taps) - int(clip_skip):
        raise InvalidSetting(
            f"clip_skip={clip_skip} reads the text encoder before {edit.site.key}, where eraser "
            f"{eraser!r} acts; use a smaller clip_skip or an eraser for an earlier Site"
        )


def has_ip_adapter(denoiser: nn.Module) -> bool:
    """Whether an IP-Adapter is loaded into the denoiser."""
    if getattr(getattr(denoiser, "config", None), "encoder_hid_dim_type", None) == "ip_image_proj":
        return True
    parts = (_attribute(denoiser, name) for name in ("encoder_hid_proj", "image_proj"))
    return any("IPAdapter" in type(part).__name__ for part in parts)


def _attribute(module: nn.Module, name: str) -> Any:
    """Return an attribute or part of a module, or None. A missing one takes `getattr` long, at every step."""
    if name in vars(module) or hasattr(type(module), name):
        return getattr(module, name, None)
    return module._modules.get(name)


def ip_adapter_message(attachment: Host) -> str:
    """Return the message for a denoiser with an IP-Adapter."""
    return f"an IP-Adapter feeds images past eraser {attachment.name!r}; unload it"
