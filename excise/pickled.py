"""Checkpoints in PyTorch's format from strangers, read for dense tensors alone."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from excise.files import TENSORS, open_regular


def read_checkpoint(path: Path, under: str) -> dict[str, Tensor]:
    """Return the tensors of a `.pt` or `.pth` file by name, without running any code that it holds.

    They may be below the key `under`. For bytes that are not such a file, torch raises all sorts of exceptions.
    Raises TypeError if anything else than dense tensors is among them, or the file is compressed.
    """
    with open_regular(path, TENSORS) as file:
        _refuse_packed(file)
        saved: Any = torch.load(file, map_location="cpu", weights_only=True)
    saved = saved.get(under, saved)
    for name, tensor in saved.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is not a tensor")
        if tensor.layout is not torch.strided or tensor.is_nested or tensor.device.type != "cpu":
            raise TypeError(f"{name} is not a dense tensor")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise TypeError(f"{name} repeats its values by strides")
    return dict(saved)


def _refuse_packed(file: IO[bytes]) -> None:
    """Raise TypeError for a compressed file, which torch never writes: a megabyte may unpack to a gigabyte."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise TypeError("it is compressed")
    file.seek(0)
