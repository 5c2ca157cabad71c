"""Files of an SAE: `cfg.json` (shape, card, digest) and `sae.safetensors`. Never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from excise import files
from excise.errors import ExciseError, NotFound, Tampered
from excise.sae.config import SAEConfig

StrPath = str | PathLike[str]
CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"
README = "README.md"
SCHEMA = "excise.sae/1"
CARD = ("corpus", "site", "tokens", "recipe", "metrics", "excludes")
"""Entries of every card, null if unknown: the corpus of the features, the Site they were read at, the vectors trained
on, the training recipe, the metrics, and the evaluation prompts excluded from the corpus."""


def pack(config: SAEConfig, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the two files' bytes by name. Raises ExciseError if the card is not json."""
    weights = safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    content = {
        "schema": SCHEMA,
        "sae": config.to_json(),
        "sha256": {WEIGHTS: files.sha256(weights)},
        "card": {**dict.fromkeys(CARD), **card},
    }
    return {CONFIG: _text(content).encode(), WEIGHTS: weights}


def read(folder: StrPath) -> tuple[SAEConfig, dict[str, Tensor], dict[str, Any]]:
    """Load configuration, tensors and card of the SAE in `folder`.

    Raises NotFound if a file is missing, Tampered if one is truncated, changed or of another format.
    """
    folder = Path(folder)
    content = _config(folder)
    data = _read(folder / WEIGHTS)
    if files.sha256(data) != content["sha256"][WEIGHTS]:
        raise Tampered(f"{folder / WEIGHTS} is not the file {CONFIG} was written for; copy the SAE again or retrain it")
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise Tampered(f"{folder / WEIGHTS} is not a safetensors file: {error}") from error
    return SAEConfig.from_json(content["sae"]), tensors, content["card"]


def is_sae(folder: StrPath) -> bool:
    """Return whether a folder holds an SAE."""
    return (Path(folder) / CONFIG).exists()


def saes_in(folder: StrPath) -> dict[str, Path]:
    """Return the SAEs in the subfolders of a folder, by name; empty if it is an SAE itself or has none."""
    folder = Path(folder)
    if is_sae(folder) or not folder.is_dir():
        return {}
    return {path.name: path for path in sorted(folder.iterdir()) if is_sae(path)}


def card(folder: StrPath) -> dict[str, Any]:
    """Return the card in `folder`, without reading the weights. Raises ExciseError as `load` does."""
    content: dict[str, Any] = _config(Path(folder))["card"]
    return content


def shape(folder: StrPath) -> SAEConfig:
    """Return the SAE's configuration in `folder`, without reading the weights. Raises ExciseError as `load` does."""
    return SAEConfig.from_json(_config(Path(folder))["sae"])


def update_card(folder: StrPath, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Set these entries of the card in `folder`, without touching the weights, and return the whole card.

    Raises ExciseError as `load` and `save` do.
    """
    folder = Path(folder)
    content = _config(folder)
    content["card"] |= changes
    files.write_atomic(folder / CONFIG, _text(content))
    card: dict[str, Any] = content["card"]
    return card


def readme(name: str, config: SAEConfig, described: bytes) -> bytes:
    """Return the README.md of an SAE in the repository `name`; `described` is its `cfg.json`, which is quoted."""
    quoted = "\n".join(f"    {line}" for line in described.decode().splitlines())
    return f"""---
library_name: excise
tags:
- excise
- sparse-autoencoder
---
# {name}

A TopK sparse autoencoder: {config.m} neurons, {config.k} kept for each vector of width {config.d}.

```python
import excise

sae = excise.TopKSAE.from_pretrained("{name}")
```

What it was trained on and what was measured (`{CONFIG}`):

{quoted}
""".encode()


def _text(content: Mapping[str, Any]) -> str:
    try:
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ExciseError(f"the SAE's card cannot be written as json: {error}") from error


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        content = files.parse_json(_read(path))
    except ValueError as error:
        raise Tampered(f"{path} is not json ({error}); copy the SAE again or retrain it") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        foreign = isinstance(content, dict) and "schema" not in content
        what = "; another library's SAE is converted by `excise sae import`" if foreign else ""
        raise Tampered(f"{path} does not describe an SAE of the format {SCHEMA}{what}")
    digests = content.get("sha256")
    if not (
        isinstance(content.get("card"), dict) and isinstance(digests, dict) and isinstance(digests.get(WEIGHTS), str)
    ):
        raise Tampered(f"{path} is incomplete; copy the SAE again or retrain it")
    SAEConfig.from_json(content.get("sae"))
    return content


def _read(path: Path) -> bytes:
    try:
        return (files.read_tensors if path.name == WEIGHTS else files.read_file)(path)
    except OSError as error:
        reason = error.strerror or error
        raise NotFound(f"cannot read {path}: {reason}; an SAE is a folder of {CONFIG} and {WEIGHTS}") from error


def check_tensors(folder: StrPath, tensors: Mapping[str, Tensor], config: SAEConfig) -> None:
    """Raise Tampered unless the tensors are finite float32 and have the names and shapes of an SAE's.

    This comes before an SAE of that shape is allocated: a file of 100 bytes may announce any.
    """
    folder, m, d = Path(folder), config.m, config.d
    expected = {"W_enc": (m, d), "W_dec": (m, d), "b_enc": (m,), "b_pre": (d,)}
    for name in sorted({*tensors, *expected}):
        found = tensors.get(name)
        if found is None or tuple(found.shape) != expected.get(name) or found.dtype != torch.float32:
            raise Tampered(f"{folder / WEIGHTS}: tensor {name} is not what {CONFIG} announces; retrain the SAE")
        if not torch.isfinite(found).all():
            raise Tampered(f"{folder / WEIGHTS}: tensor {name} contains NaN or infinity; retrain the SAE")
