"""SAEs that others published, turned into ours: safetensors stay safetensors, pickles are read for tensors alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from excise.errors import ExciseError
from excise.sae.config import SAEConfig
from excise.sae.model import TopKSAE

PARAMETERS = {
    "W_enc": ("encoder.weight",),
    "b_enc": ("encoder.bias", "latent_bias"),
    "b_pre": ("b_dec", "pre_bias"),
    "W_dec": ("W_dec", "decoder.weight"),
}
"""What the published formats call our parameters: SAEuron's and SAEmnesia's (after sparsify), then that of the k-sparse
autoencoders of SNCE and Concept Steerers, whose decoder is transposed."""
FOREIGN = {
    "input_unit_norm": "normalises every vector it reads",
    "transcode": "predicts another layer",
    "skip_connection": "adds a linear map of what it reads",
}
"""Settings of the published trainers under which an SAE is not what ours is."""
CONFIGS, WEIGHTS = ("cfg.json", "config.json"), ("sae.safetensors", "state_dict.pth")


def read_published(folder: Path) -> TopKSAE:
    """The SAE that lies in `folder` as one of these projects publishes it: `cfg.json` with `sae.safetensors`, or
    `config.json` with `state_dict.pth`, which is read as tensors and nothing else (`weights_only`).

    Raises ExciseError where a file is missing or broken, tensors are absent or of other shapes, or the SAE does what
    ours does not (`FOREIGN`, an activation other than TopK, further weights).
    """
    said = _json(_there(folder, CONFIGS))
    for key, does in FOREIGN.items():
        if said.get(key):
            raise ExciseError(f"the SAE in {folder} {does} ({key}), which ours cannot")
    if said.get("activation", "topk") != "topk":
        raise ExciseError(f"the SAE in {folder} has the activation {said['activation']!r}; only topk can be read")
    tensors = _tensors(_there(folder, WEIGHTS))
    known = {name for names in PARAMETERS.values() for name in names}
    if more := sorted(name for name, tensor in tensors.items() if tensor.ndim > 1 and name not in known):
        raise ExciseError(f"the SAE in {folder} has further weights, {more[0]}; it is of another format")
    found: dict[str, Tensor] = {}
    for own, names in PARAMETERS.items():
        name = next((name for name in names if name in tensors), None)
        if name is None:
            raise ExciseError(f"the SAE in {folder} has no {' or '.join(names)}; it is of another format")
        found[own] = tensors[name].float().T if name == "decoder.weight" else tensors[name].float()
    m, d = found["W_enc"].shape if found["W_enc"].ndim == 2 else (0, 0)
    try:
        sae = TopKSAE(SAEConfig(d=int(d), m=int(m), k=said["k"]))
    except KeyError as error:
        raise ExciseError(f"the SAE's settings in {folder} do not say its k") from error
    for name, parameter in sae.state_dict().items():
        if found[name].shape != parameter.shape:
            raise ExciseError(f"{name} in {folder} is {tuple(found[name].shape)}, not {tuple(parameter.shape)}")
        if not torch.isfinite(found[name]).all():
            raise ExciseError(f"{name} in {folder} holds NaN or infinity; fetch it again")
    sae.load_state_dict(found)
    return sae.eval()


def _there(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ExciseError(f"{folder} has no {' or '.join(names)}; name the folder of a published SAE")


def _json(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ExciseError(f"cannot read {path} ({error}); fetch it again") from error
    if not isinstance(said, dict):
        raise ExciseError(f"{path} is no json object; fetch it again")
    return said


def _tensors(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
        tensors = saved.get("state_dict", saved)
        return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    except Exception as error:  # bytes that were never a file of that kind make torch raise whatever it stumbles over
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExciseError(f"cannot read {path} as tensors alone ({reason[:120]}); fetch it again") from error
