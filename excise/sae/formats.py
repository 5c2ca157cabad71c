"""An SAE on disk: `cfg.json` (shape, card, digest) beside `sae.safetensors`. Never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from excise import files
from excise.errors import ExciseError
from excise.sae.config import SAEConfig
from excise.sae.model import TopKSAE

CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"
SCHEMA = "excise.sae/1"
CARD = ("corpus", "site", "tokens", "recipe", "metrics", "excludes")
"""What a card always says, null where nobody said: the corpus the features come from, the Site they were read at, the
vectors trained on, the training recipe, what was measured, and the evaluation prompts kept out of the corpus."""


def save(
    sae: TopKSAE, folder: Path, card: Mapping[str, Any], *, extra: Mapping[str, bytes | str] | None = None
) -> None:
    """Write `sae` and its card into `folder` at once, with `extra` files (a log) beside them.

    Raises ExciseError where the folder holds other files, the card is not json, or the disk refuses.
    """
    weights = safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in sae.state_dict().items()})
    content = {
        "schema": SCHEMA,
        "sae": sae.config.to_json(),
        "sha256": {WEIGHTS: files.sha256(weights)},
        "card": {**dict.fromkeys(CARD), **card},
    }
    files.write_folder(folder, {CONFIG: _text(content), WEIGHTS: weights, **(extra or {})})


def load(folder: Path, *, device: torch.device | str = "cpu") -> TopKSAE:
    """Read what `save` wrote. Raises ExciseError where it is missing, cut short, changed or of another format."""
    content = _config(folder)
    config = SAEConfig.from_json(content["sae"])
    data = _read(folder / WEIGHTS)
    if files.sha256(data) != content["sha256"][WEIGHTS]:
        raise ExciseError(
            f"{folder / WEIGHTS} is not the file {CONFIG} was written for; copy the SAE again or retrain it"
        )
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise ExciseError(f"{folder / WEIGHTS} is not a safetensors file: {error}") from error
    sae = TopKSAE(config)
    _check(folder, tensors, sae.state_dict())
    sae.load_state_dict(tensors)
    return sae.to(device)


def saes_in(folder: Path) -> dict[str, Path]:
    """The folders of SAEs that lie in a folder which holds none itself, by their names; empty where there are none."""
    if (folder / CONFIG).exists() or not folder.is_dir():
        return {}
    return {path.name: path for path in sorted(folder.iterdir()) if (path / CONFIG).exists()}


def card(folder: Path) -> dict[str, Any]:
    """The card in `folder`, without reading the weights. Raises ExciseError as `load` does."""
    content: dict[str, Any] = _config(folder)["card"]
    return content


def shape(folder: Path) -> SAEConfig:
    """The configuration of the SAE in `folder`, without reading the weights. Raises ExciseError as `load` does."""
    return SAEConfig.from_json(_config(folder)["sae"])


def update_card(folder: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Set these entries of the card in `folder`, whose weights stay as they are; returns the whole card.

    Raises ExciseError as `load` and `save` do.
    """
    content = _config(folder)
    content["card"] |= changes
    files.write_atomic(folder / CONFIG, _text(content))
    told: dict[str, Any] = content["card"]
    return told


def _text(content: Mapping[str, Any]) -> str:
    try:
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ExciseError(f"the SAE's card cannot be written as json: {error}") from error


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        content = json.loads(_read(path).decode("utf-8"))
    except ValueError as error:
        raise ExciseError(f"{path} is not json ({error}); copy the SAE again or retrain it") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ExciseError(f"{path} does not describe an SAE of the format {SCHEMA}")
    digests = content.get("sha256")
    if not (
        isinstance(content.get("card"), dict) and isinstance(digests, dict) and isinstance(digests.get(WEIGHTS), str)
    ):
        raise ExciseError(f"{path} is incomplete; copy the SAE again or retrain it")
    SAEConfig.from_json(content.get("sae"))
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise ExciseError(f"cannot read {path}: {reason}; an SAE is a folder of {CONFIG} and {WEIGHTS}") from error


def _check(folder: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name in sorted({*tensors, *expected}):
        found, wanted = tensors.get(name), expected.get(name)
        if found is None or wanted is None or found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise ExciseError(f"{folder / WEIGHTS}: tensor {name} is not what {CONFIG} announces; retrain the SAE")
        if not torch.isfinite(found).all():
            raise ExciseError(f"{folder / WEIGHTS}: tensor {name} holds NaN or infinity; retrain the SAE")
