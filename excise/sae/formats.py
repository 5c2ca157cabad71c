"""Saving and loading SAEs, as functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from excise.files import write_folder
from excise.sae.model import TopKSAE
from excise.sae.storage import CARD, CONFIG, SCHEMA, WEIGHTS, StrPath, card, pack, saes_in, shape, update_card

__all__ = ["CARD", "CONFIG", "SCHEMA", "WEIGHTS", "card", "load", "saes_in", "save", "shape", "update_card"]


def save(
    sae: TopKSAE, folder: StrPath, card: Mapping[str, Any], *, extra: Mapping[str, bytes | str] | None = None
) -> None:
    """Write `sae` and its card into `folder` atomically, with `extra` files such as a log.

    Raises ExciseError if the folder holds other files, the card is not json, or the disk refuses.
    """
    write_folder(Path(folder), {**pack(sae.config, sae.state_dict(), card), **(extra or {})})


def load(folder: StrPath, *, device: torch.device | str = "cpu") -> TopKSAE:
    """Load what `save` wrote. Raises ExciseError if it is missing, truncated, changed or of another format."""
    return TopKSAE.read(folder).to(device)
