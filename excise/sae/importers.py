"""SAEs that others published, turned into ours: safetensors stay safetensors, pickles are read for tensors alone.

Each format states every setting and every tensor it may hold. What is not stated is refused by name, since an SAE that
is read without one of its parts gives other codes than it was published with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from excise.errors import ExciseError, NotFound
from excise.sae.config import SAEConfig
from excise.sae.layouts import FORMATS, Read
from excise.sae.model import TopKSAE

FOREIGN = {
    "input_unit_norm": "normalises every vector it reads",
    "transcode": "predicts another layer",
    "skip_connection": "adds a linear map of what it reads",
    "signed": "keeps negative codes",
    "finetuning_scaling_factor": "scales its codes after training",
}
"""Settings under which an SAE computes something that ours cannot."""


def read_published(folder: Path) -> TopKSAE:
    """The SAE that lies in `folder` as one of these libraries writes it.

    sparsify and its descendants (SAEuron, SAEmnesia): cfg.json, sae.safetensors. The k-sparse autoencoders of SNCE and
    Concept Steerers: config.json, state_dict.pth. SAELens: cfg.json, sae_weights.safetensors. dictionary_learning:
    config.json, ae.pt. A `.pt` or `.pth` is read as tensors and nothing else (`weights_only`).

    Raises ExciseError where a file is missing or broken, a tensor or a setting is unknown or missing, tensors have
    other shapes than stated, or the SAE computes what a TopK SAE does not.
    """
    folder = _folder(folder)
    form = next((form for form in FORMATS if (folder / form.weights).is_file()), None)
    if form is None or not (folder / form.config).is_file():
        raise ExciseError(_nothing_there(folder))
    said = _json(folder / form.config)
    if "schema" in said and "sha256" in said:
        raise ExciseError(f"{folder} holds an SAE of Excise's own format already; use it as it is")
    for key, does in FOREIGN.items():
        if said.get(key):
            raise ExciseError(f"the SAE in {folder} {does} ({key}), which ours cannot")
    if odd := sorted(set(said) - form.settings - set(FOREIGN)):
        raise ExciseError(f"the SAE in {folder} has the setting {odd[0]}={said[odd[0]]!r}, which Excise does not know")
    tensors = _tensors(folder / form.weights)
    if odd := sorted(set(tensors) - form.tensors - form.unused):
        raise ExciseError(f"the SAE in {folder} has the further tensor {odd[0]}, which Excise does not know")
    if lacking := sorted(form.tensors - set(tensors)):
        raise ExciseError(f"the SAE in {folder} has no tensor {lacking[0]}; fetch it again")
    for name in sorted(form.tensors):
        if not tensors[name].is_floating_point():
            raise ExciseError(f"{name} in {folder} holds no floating point numbers; fetch it again")
    return _sae(folder, form.read(folder, said, tensors))


def _sae(folder: Path, read: Read) -> TopKSAE:
    found, k = read.parameters, read.k
    if k is None:
        raise ExciseError(f"the SAE's settings in {folder} do not say its k")
    m, d = found["W_enc"].shape if found["W_enc"].ndim == 2 else (0, 0)
    for name, stated, actual in (("width", read.d, d), ("number of latents", read.m, m)):
        if stated not in (None, actual):
            raise ExciseError(f"the SAE's settings in {folder} say the {name} {stated}, its tensors {actual}")
    sae = TopKSAE(SAEConfig(d=int(d), m=int(m), k=k))  # type: ignore[arg-type]  # SAEConfig refuses what is no number
    for name, parameter in sae.state_dict().items():
        if found[name].shape != parameter.shape:
            raise ExciseError(f"{name} in {folder} is {tuple(found[name].shape)}, not {tuple(parameter.shape)}")
        if not torch.isfinite(found[name]).all():
            raise ExciseError(f"{name} in {folder} holds NaN or infinity; fetch it again")
    sae.load_state_dict(found)
    return sae.eval()


def _folder(path: Path) -> Path:
    """The folder that a path names, itself or by a file of weights in it."""
    if path.is_file() and path.name in {form.weights for form in FORMATS}:
        return path.parent
    if not path.exists():
        raise NotFound(
            f"there is no folder {path}; an SAE is read from the disk: fetch one from the hub first, with "
            "`hf download OWNER/NAME --local-dir FOLDER`, and name that folder"
        )
    return path


def _nothing_there(folder: Path) -> str:
    layouts = ", ".join(f"{form.config} with {form.weights}" for form in FORMATS)
    inside = sorted(
        str(path.parent.relative_to(folder)) for form in FORMATS for path in folder.glob(f"*/**/{form.weights}")
    )
    if inside:
        return f"{folder} holds {len(inside)} SAEs in folders of their own; name one, such as {folder / inside[0]}"
    return f"{folder} holds no published SAE; it is one of {layouts}"


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
        saved = saved.get("state_dict", saved)
        if odd := sorted(str(name) for name, tensor in saved.items() if not isinstance(tensor, Tensor)):
            raise TypeError(f"{odd[0]} is no tensor")
        return dict(saved)
    except Exception as error:  # bytes that were never a file of that kind make torch raise whatever it stumbles over
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExciseError(f"cannot read {path} as tensors alone ({reason[:120]}); fetch it again") from error
