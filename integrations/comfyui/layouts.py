"""Layouts of ComfyUI's text encoders: which part is which component of diffusers, and where its layers are."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from excise.errors import InvalidSetting, WrongModel

FIRST, SECOND, THIRD = "text_encoder", "text_encoder_2", "text_encoder_3"
LAYOUTS: dict[tuple[str, ...], dict[str, str]] = {
    ("clip_g", "clip_l", "t5xxl"): {FIRST: "clip_l", SECOND: "clip_g", THIRD: "t5xxl"},  # Stable Diffusion 3
    ("clip_g", "clip_l"): {FIRST: "clip_l", SECOND: "clip_g"},  # SDXL
    ("clip_l", "t5xxl"): {FIRST: "clip_l", SECOND: "t5xxl"},  # FLUX.1
    ("clip_l",): {FIRST: "clip_l"},  # Stable Diffusion 1.x
    ("clip_h",): {FIRST: "clip_h"},  # Stable Diffusion 2.x
    ("clip_g",): {SECOND: "clip_g"},  # SDXL's refiner
    ("t5xxl",): {FIRST: "t5xxl"},  # PixArt
    ("umt5xxl",): {FIRST: "umt5xxl"},  # Wan
    ("qwen25_7b",): {FIRST: "qwen25_7b"},  # Qwen-Image
    ("qwen3_4b",): {FIRST: "qwen3_4b"},  # Z-Image, FLUX.2 Klein
    ("qwen3_8b",): {FIRST: "qwen3_8b"},  # FLUX.2 Klein
    ("gemma2_2b",): {FIRST: "gemma2_2b"},  # Lumina 2
}
"""The component of diffusers for each part, by the names of all parts."""
PADDED = {"t5xxl"}
"""Parts without a mask, in which padding changes every state: the prompt's length must be the one of the fit."""
_STACK = re.compile(r"^(?:model\.)?(?:language_model\.)?layers\.")
LAYER = re.compile(r"(?:^|\.)(?:layers|block)\.(\d+)(?:\.|$)")
"""Where the number of a layer is in a path."""
_EARLY = re.compile(r"(?:^|\.)(?:embeddings|embed_tokens|shared)(?:\.|$)")


_PARTS = {name for names in LAYOUTS for name in names}


def layout_of(model: Any) -> dict[str, Any]:
    """Return a text encoder's parts by component of diffusers; None for those that its file lacked.

    Raises WrongModel if the layout is unknown.
    """
    modules = dict(getattr(model, "_modules", {}))
    names = tuple(sorted(_PARTS & {*modules, *vars(model)}))
    others = sorted(name for name, part in modules.items() if hasattr(part, "transformer") and name not in _PARTS)
    if names not in LAYOUTS or others:
        found = ", ".join([*names, *others]) or type(model).__name__
        raise WrongModel(f"Excise does not know a CLIP with the text encoders {found}; use one of a model in its list")
    return {component: getattr(model, name) for component, name in LAYOUTS[names].items()}


def parts_of(model: Any) -> dict[str, Any]:
    """Return the parts of `layout_of` that are there."""
    return {component: part for component, part in layout_of(model).items() if part is not None}


def name_of(model: nn.Module, part: Any) -> str:
    """Return the attribute of `model` that holds `part`."""
    return next(name for name, held in model._modules.items() if held is part)


def module_at(part: Any, path: str) -> tuple[str, nn.Module]:
    """Return the name within `part` and the module of a Site's `path` in diffusers' encoder.

    Raises WrongModel if there is none, or ComfyUI does not run it.
    """
    for name in (path, f"text_model.{path.removeprefix('text_model.')}", _STACK.sub("model.layers.", path)):
        try:
            found = part.transformer.get_submodule(name)
        except AttributeError:
            continue
        if _EARLY.search(name):
            raise WrongModel(f"ComfyUI reads embeddings without running {path!r}; use an eraser of a layer")
        return f"transformer.{name}", found
    raise WrongModel(f"this text encoder has no module {path!r}; the eraser was made for another model")


def refuse_early(part: Any, path: str, eraser: str) -> None:
    """Raise InvalidSetting if `part` is set to read its states before the Site at `path`."""
    layer = LAYER.search(path)
    at = int(layer[1]) if layer else part.num_layers
    if part.layer in ("last", "pooled"):
        return
    if part.layer == "all":
        read = 0
    elif isinstance(part.layer, list):
        read = min(_counted(n, part.num_layers) for n in part.layer)
    else:
        read = _counted(part.layer_idx, part.num_layers)
    if read < at and not (layer is None and part.layer_norm_hidden_state):
        raise InvalidSetting(
            f"clip skip reads layer {read} of the text encoder, before {path}, where eraser {eraser!r} acts; "
            "use a smaller clip skip (CLIP Set Last Layer nearer to -1) or an eraser for an earlier layer"
        )


def _counted(index: int, layers: int) -> int:
    return index if index >= 0 else layers + index
