"""What readers and writers of other libraries' SAEs share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from excise.errors import ExciseError, shown
from excise.files import sha256
from excise.sae.model import TopKSAE
from excise.sae.storage import WEIGHTS, pack

CARD = "excise"
"""Setting in which an exported SAE keeps its card and digest: in SAELens's metadata, or among sparsify's settings."""


class Read(NamedTuple):
    """Result of a format's reader: our parameters, and the shape that the settings state."""

    parameters: dict[str, Tensor]
    k: object
    d: object
    m: object
    """None if not stated."""


def only(folder: Path, settings: Mapping[str, Any], key: str, value: str) -> None:
    """Raise ExciseError if a setting is there and has another value."""
    if settings.get(key, value) != value:
        raise ExciseError(f"the SAE in {folder} has the {key} {shown(settings[key])}; only {value} can be read")


def transposed(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a matrix transposed, and any other tensor as it is, converted to `dtype`."""
    return tensor.to(dtype).T.contiguous() if tensor.ndim == 2 else tensor.to(dtype)


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


def digest(sae: TopKSAE) -> str:
    """Return the digest that the SAE's weights have in Excise's own format."""
    return sha256(pack(sae.config, sae.state_dict(), {})[WEIGHTS])
