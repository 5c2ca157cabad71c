"""Erasers as LoRA files, which other programs load. Only a change of weights that is a product is one."""

from __future__ import annotations

import re
from typing import Any

import torch
from safetensors.torch import save

from excise.erasers.artefact.record import Artefact
from excise.erasers.edits.weights import WeightEdit
from excise.errors import ExciseError, WrongModel

WARNING = (
    "This file is not an eraser. It holds the changed weights alone: nothing checks that it fits the model, that it is "
    "loaded, or that it acts, and a program may load it at another strength."
)
"""In the file's metadata."""
_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}
"""Begin the names of a component's layers in kohya's format, for Stable Diffusion 1.x and 2.x."""
_LINEAR = re.compile(r"(.*\.)?(attn\d?|ff|self_attn|mlp)\..+")
"""Paths of layers that are linear in every model, so that a product of two matrices is all of the change."""


def lora(eraser: Artefact) -> bytes:
    """Return the eraser as a LoRA file in kohya's format (safetensors), which diffusers and other programs load.

    Its change of each layer's weights, at strength 1, is the eraser's: `lora_up @ lora_down` in float32, and `alpha` is
    the rank. The metadata name the eraser's digest, and say that nothing verifies the file.

    Raises:
        WrongModel: Its change is not a product of matrices, or it is of a model whose LoRA files have other names.
    """
    tensors: dict[str, torch.Tensor] = {}
    ranks = set()
    for edit in eraser.edits:
        if reason := unfit(edit):
            raise WrongModel(f"eraser {eraser.name!r} cannot be a LoRA: {reason}")
        assert isinstance(edit, WeightEdit) and edit.up is not None and edit.down is not None
        name = f"{_PREFIXES[edit.site.component]}_{_path(edit).replace('.', '_')}"
        tensors[f"{name}.lora_up.weight"] = edit.up.float().contiguous()
        tensors[f"{name}.lora_down.weight"] = edit.down.float().contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(edit.rank))
        ranks.add(edit.rank)
    if not tensors:
        raise ExciseError(f"{eraser.name!r} edits nothing, so there is nothing to export")
    most = str(max(ranks))
    return save(
        tensors,
        {
            "format": "pt",
            "ss_network_module": "networks.lora",
            "ss_network_dim": most if len(ranks) == 1 else "Dynamic",
            "ss_network_alpha": most if len(ranks) == 1 else "Dynamic",
            "excise.digest": eraser.digest,
            "excise.concept": eraser.concept,
            "excise.method": eraser.method,
            "excise.pipeline": str(eraser.made_for.get("pipeline", "")),
            "excise.warning": WARNING,
        },
    )


def unfit(edit: Any) -> str:
    """Return why an edit cannot be a LoRA, or an empty text if it can."""
    where = edit.site.key
    if type(edit) is not WeightEdit:
        if isinstance(edit, WeightEdit):
            return f"its change of {where} depends on the prompt or the step, and a LoRA would always make it"
        return f"its edit of {where} depends on the prompt and changes no weights; use the eraser itself"
    if edit.up is None:
        return f"its change of {where} is a whole matrix and no product of two small ones"
    if edit.site.component not in _PREFIXES:
        return f"LoRA files have no common name for the layers of a {edit.site.component}"
    if not _LINEAR.fullmatch(edit.site.path):
        return f"{where} may be a convolution, whose shape the eraser does not hold"
    return ""


def _path(edit: WeightEdit) -> str:
    """Return the layer's path as kohya's programs know it: a text encoder's begins with `text_model`."""
    path = edit.site.path
    return path if edit.site.component == "unet" or path.startswith("text_model.") else f"text_model.{path}"
