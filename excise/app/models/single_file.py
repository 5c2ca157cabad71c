"""Checkpoints in one safetensors file (Stable Diffusion 1.x, 2.x and XL), loaded without a network.

Such a file holds weights alone. Names and shapes show the kind of model. Configurations are in
`single_files.json`, and CLIP's tokenizer comes with the bundled model.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from excise.errors import ExciseError, WrongModel
from excise.files import SMALL, open_regular, parse_json, read_json

if TYPE_CHECKING:
    import torch

CONFIGS = Path(__file__).with_name("single_files.json")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_PARTS = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}
"""Beginnings of the names of each component's weights."""
_FIRST = "model.diffusion_model.input_blocks.0.0.weight"
"""A weight that every such checkpoint has, and no LoRA, VAE or text encoder alone."""


@dataclass(frozen=True)
class Header:
    """The table of a checkpoint: shapes and dtypes by name, and its metadata."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]


def header_of(path: Path) -> Header:
    """Read the table of a safetensors file. Raises ExciseError if it is not one."""
    try:
        with open_regular(path) as file:
            length = struct.unpack("<Q", file.read(8))[0]
            table: Any = parse_json(file.read(length)) if length <= SMALL else None
        metadata = table.pop("__metadata__", {})
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in table.items()}
        return Header(shapes, {name: str(entry["dtype"]) for name, entry in table.items()}, dict(metadata))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise ExciseError(f"{path} is not a safetensors file, or it is damaged; copy or download it again") from error


def kind_of(path: Path, header: Header) -> str:
    """Return which kind of model a checkpoint is: a key of `single_files.json`.

    Raises:
        WrongModel: It is of another kind, or only a part.
    """
    import torch
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    hint = "name a folder with model_index.json instead (Pipeline.from_single_file(...).save_pretrained(...) makes one)"
    known = read_json(CONFIGS)
    if _FIRST not in header.shapes:
        raise WrongModel(
            f"{path} is not a whole Stable Diffusion 1, 2 or XL but another model, a LoRA or a part; {hint}"
        )
    found: str = infer_diffusers_model_type(
        {name: torch.empty(shape, device="meta") for name, shape in header.shapes.items()}
    )
    if found not in known:
        raise WrongModel(f"{path} is a checkpoint of the kind {found}, whose configuration is not here; {hint}")
    return found


def load_single_file(path: Path, dtype: torch.dtype | None, device: str) -> Any:
    """Load a checkpoint onto the CPU, without a safety checker.

    Args:
        path: The file.
        dtype: Precision; None for float32, or on a CUDA device the precision of most of the denoiser's weights.
        device: Device that it will be moved to.

    Raises:
        ExciseError: It is not a checkpoint of a known kind, or incomplete.
    """
    import diffusers
    import torch
    from transformers import CLIPTokenizerFast

    from excise import loading
    from excise.reference import data

    header = header_of(path)
    known = read_json(CONFIGS)[kind_of(path, header)]
    chosen = dtype or (_own_dtype(header) if device.startswith("cuda") else torch.float32)
    files = {**known["files"]}
    if (prediction := header.metadata.get("modelspec.prediction_type")) in ("epsilon", "v"):
        scheduler = files["scheduler/scheduler_config.json"]
        kind = "epsilon" if prediction == "epsilon" else "v_prediction"
        files["scheduler/scheduler_config.json"] = {**scheduler, "prediction_type": kind}
    tokenizers = {
        name: CLIPTokenizerFast.from_pretrained(data.folder() / "model" / "tokenizer", pad_token=pad)
        for name, pad in known["pads"].items()
    }
    with TemporaryDirectory() as folder, loading.quiet():
        for name, content in files.items():
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).write_text(json.dumps(content))
        pipeline = getattr(diffusers, files["model_index.json"]["_class_name"])
        pipe = pipeline.from_single_file(
            str(path), config=folder, local_files_only=True, **tokenizers, **loading.in_dtype(chosen)
        )
    _refuse_gaps(path, header, pipe)
    pipe.set_progress_bar_config(disable=True)
    pipe.register_to_config(_name_or_path=str(path.absolute()))  # erasers record the file's digest
    return pipe


def _own_dtype(header: Header) -> torch.dtype:
    import torch

    counted: dict[str, int] = {}
    for name, shape in header.shapes.items():
        if name.startswith(_PARTS["unet"]):
            counted[header.dtypes[name]] = counted.get(header.dtypes[name], 0) + prod(shape)
    most = max(counted, key=counted.__getitem__)
    dtype: torch.dtype = getattr(torch, _DTYPES.get(most, "bfloat16"))
    return dtype


def _refuse_gaps(path: Path, header: Header, pipe: Any) -> None:
    """Raise ExciseError if a component has weights that the file does not: the loader leaves them as they are made."""
    for name, beginnings in _PARTS.items():
        model = getattr(pipe, name, None)
        if model is None:
            continue
        there = sum(prod(shape) for key, shape in header.shapes.items() if key.startswith(beginnings))
        wanted = sum(parameter.numel() for parameter in model.parameters())
        if there < wanted or any(parameter.is_meta for parameter in model.parameters()):
            raise ExciseError(f"{path} is incomplete: it has {there} of the {wanted} weights of its {name}")
