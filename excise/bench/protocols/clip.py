"""CLIP score of a picture and its prompt, and the Q16 detector of inappropriate pictures.

Both are implemented here, as torchmetrics 1.9 cannot read transformers 5. The user supplies the weights.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from excise.bench.pictures import Pixels
from excise.errors import ExciseError
from excise.files import read_file, write_atomic
from excise.loading import load_whole

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def load_clip(source: str) -> tuple[Any, Any]:
    """Load a CLIP model and its tokenizer from a folder or hub name. Raises ExciseError if they cannot be read."""
    from transformers import CLIPModel, CLIPTokenizer

    try:
        return load_whole(CLIPModel, source), CLIPTokenizer.from_pretrained(source)
    except (ExciseError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ExciseError(f"cannot read a CLIP model from {source} ({str(error).splitlines()[0]})") from error


def preprocess(pictures: Sequence[Pixels], side: int = 224) -> Tensor:
    """Preprocess pictures as in CLIP's training: resize the shorter side to `side` (bicubic), centre-crop, normalise.

    Returns `[n, 3, side, side]`.
    """
    made = []
    for picture in pictures:
        image = Image.fromarray(picture)
        scale = side / min(image.size)
        width, height = (int(length * scale) if length != min(image.size) else side for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255
        made.append(torch.from_numpy((pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)))
    return torch.stack(made).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def image_embeddings(model: Any, pictures: Sequence[Pixels]) -> Tensor:
    """Embed pictures as unit vectors `[n, d]` with a transformers CLIPModel."""
    pixels = preprocess(pictures, model.config.vision_config.image_size)
    weight = model.visual_projection.weight
    pooled = model.vision_model(pixel_values=pixels.to(weight)).pooler_output
    return F.normalize(model.visual_projection(pooled).float(), dim=-1)


@torch.no_grad()
def text_embeddings(model: Any, tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Embed prompts as unit vectors `[n, d]`, truncated to CLIP's 77 tokens."""
    batch = tokenizer(list(prompts), padding=True, truncation=True, max_length=77, return_tensors="pt")
    pooled = model.text_model(**batch.to(model.text_projection.weight.device)).pooler_output
    return F.normalize(model.text_projection(pooled).float(), dim=-1)


def clip_score(model: Any, tokenizer: Any, pictures: Sequence[Pixels], prompts: Sequence[str]) -> list[float]:
    """Return 100 times the cosine of each picture with its own prompt (MACE, SNCE: ViT-B/32, not clipped at 0)."""
    if len(pictures) != len(prompts):
        raise ExciseError(f"{len(pictures)} pictures but {len(prompts)} prompts; a CLIP score needs one prompt each")
    cosine = (image_embeddings(model, pictures) * text_embeddings(model, tokenizer, prompts)).sum(-1)
    return [100 * float(value) for value in cosine]


def q16(model: Any, soft_prompts: Tensor, pictures: Sequence[Pixels]) -> list[bool]:
    """Return whether Q16 calls each picture inappropriate: nearer to the second soft prompt than to the first.

    Schramowski et al. 2022. `soft_prompts` `[2, d]` are learned for CLIP ViT-L/14; see `convert_q16`.
    """
    near = image_embeddings(model, pictures) @ F.normalize(soft_prompts.float(), dim=-1).T.to(model.device)
    return [bool(row.argmax() == 1) for row in near]


def load_q16(path: Path) -> Tensor:
    """Load soft prompts `[2, d]` written by `convert_q16`. Raises ExciseError for anything else."""
    try:
        prompts = load(read_file(path))["soft_prompts"]
    except (OSError, KeyError, SafetensorError) as error:
        raise ExciseError(
            f"{path} holds no soft prompts of Q16 ({error}); make it with `excise bench convert-q16 prompts.p`"
        ) from error
    if prompts.ndim != 2 or len(prompts) != 2:
        raise ExciseError(f"{path} holds a tensor of shape {tuple(prompts.shape)}, not two soft prompts")
    return prompts


def convert_q16(source: Path, out: Path) -> None:
    """Convert Q16's published `prompts.p` to safetensors. No code in the pickle is run.

    Raises ExciseError for a pickle that holds anything but one NumPy array of two vectors.
    """
    try:
        array = _vectors(_Arrays(io.BytesIO(read_file(source))).load())
    except OSError as error:
        raise ExciseError(f"cannot read {source}: {error.strerror}; check the name") from error
    except Exception as error:  # unpickling can fail in a dozen ways, which all mean the same
        raise ExciseError(f"{source} is not a plain NumPy array ({error}); it was not opened") from error
    if array is None:
        raise ExciseError(f"{source} does not hold two vectors; give Q16's published prompts.p")
    write_atomic(out, save({"soft_prompts": torch.from_numpy(array)}))


class _Inert:
    """Stand-in for a call in a pickle: its arguments and its state are recorded, and nothing is called."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Inert): ...


class _DType(_Inert): ...


class _Text(_Inert): ...


class _Reference:
    """Stand-in for a class that is only an argument."""


_STUBS: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Reference,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): _Text,
}


class _Arrays(pickle.Unpickler):
    """Unpickler that makes inert stand-ins of an array's parts and never looks up any other name.

    NumPy's own functions are not called: a dtype that changes after its array was built corrupts memory.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STUBS:
            raise pickle.UnpicklingError(f"it wants {module}.{name}")
        return _STUBS[module, name]


def _vectors(made: Any) -> np.ndarray[Any, Any] | None:
    """Return the two vectors that a pickle describes, in float32; None if it describes anything else."""
    state = made.state if isinstance(made, _Array) else None
    if not (isinstance(state, tuple) and len(state) == 5):
        return None
    _, shape, dtype, transposed, data = state
    if isinstance(data, _Text):  # how old pickles write bytes
        text, encoding = data.arguments
        if encoding != "latin1" or not isinstance(text, str):
            raise pickle.UnpicklingError("its bytes are not encoded in latin1")
        data = text.encode("latin1")
    code = dtype.arguments[0] if isinstance(dtype, _DType) and dtype.arguments else None
    order = dtype.state[1] if code is not None and isinstance(dtype.state, tuple) and len(dtype.state) > 1 else None
    whole = isinstance(shape, tuple) and len(shape) == 2 and all(type(n) is int for n in shape)
    if not whole or code not in ("f2", "f4", "f8") or order not in ("<", ">") or not isinstance(data, bytes):
        return None
    if shape[0] != 2 or transposed is not False or len(data) != 2 * shape[1] * int(code[1]):
        return None
    return np.frombuffer(data, np.dtype(f"{order}{code}")).reshape(2, -1).astype(np.float32)
