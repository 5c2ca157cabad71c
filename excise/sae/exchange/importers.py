"""Import of SAEs that others published: safetensors stay safetensors, pickles are read for tensors alone.

Each format lists every setting and every tensor it may hold. Others are refused by name, since an SAE without one of
its parts gives other codes than the published one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from excise.errors import ExciseError, NotFound, shown
from excise.files import read_json, read_tensors
from excise.pickled import read_checkpoint
from excise.sae.config import SAEConfig
from excise.sae.exchange.layouts import FORMATS
from excise.sae.exchange.read import CARD, Read, digest
from excise.sae.model import TopKSAE
from excise.sae.storage import StrPath

FOREIGN = {
    "input_unit_norm": "normalises every vector it reads",
    "transcode": "predicts another layer",
    "skip_connection": "adds a linear map of what it reads",
    "signed": "keeps negative codes",
    "finetuning_scaling_factor": "scales its codes after training",
}
"""Settings under which an SAE computes something that ours cannot."""


def read_published(folder: StrPath) -> TopKSAE:
    """Load the SAE in `folder`, as one of these libraries writes it.

    sparsify and its descendants (SAEuron, SAEmnesia): cfg.json, sae.safetensors. The k-sparse autoencoders of SNCE and
    Concept Steerers: config.json, state_dict.pth. SAELens: cfg.json, sae_weights.safetensors. dictionary_learning:
    config.json, ae.pt. A `.pt` or `.pth` is read for tensors alone (`weights_only`).

    The SAE's codes and reconstructions are those of the library in float32, up to rounding. SAELens's `standard` SAEs
    keep every positive code and are read with k = m. `card` is that of an SAE which `export` wrote (of one that
    was changed since, its Site alone), and empty for others.

    Args:
        folder: A folder on the disk, or the file of weights in it.

    Raises:
        NotFound: if there is no such folder.
        ExciseError: if a file is missing or broken, a tensor or a setting is unknown or missing, a tensor's shape is
            not the stated one, or the SAE computes something that a TopK SAE does not.

    Example:
        >>> sae = excise.sae.read_published("gemma-sae/layer_12")
    """
    folder = _folder(Path(folder))
    form = next((form for form in FORMATS if (folder / form.weights).is_file()), None)
    if form is None or not (folder / form.config).is_file():
        raise ExciseError(_nothing_there(folder))
    settings = _json(folder / form.config)
    if "schema" in settings and "sha256" in settings:
        raise ExciseError(f"{folder} already holds an SAE of Excise's own format; use it as it is")
    for key, does in FOREIGN.items():
        if settings.get(key):
            raise ExciseError(f"the SAE in {folder} {does} ({key}), which ours cannot")
    if form.check is not None:
        form.check(folder, settings)
    if odd := sorted(set(settings) - form.settings - set(FOREIGN)):
        raise ExciseError(f"the SAE in {folder} has the unknown setting {odd[0][:60]}={shown(settings[odd[0]])}")
    tensors = _tensors(folder / form.weights)
    if odd := sorted(set(tensors) - form.tensors - form.unused):
        raise ExciseError(f"the SAE in {folder} has the unknown tensor {odd[0][:60]}")
    if lacking := sorted(form.tensors - set(tensors)):
        raise ExciseError(f"the SAE in {folder} has no tensor {lacking[0]}; fetch it again")
    for name in sorted(form.tensors):
        if not tensors[name].is_floating_point():
            raise ExciseError(f"{name} in {folder} does not hold floating-point numbers; fetch it again")
    sae = _sae(folder, form.read(folder, settings, tensors))
    sae.card = _card(folder, settings, sae)
    return sae


def _card(folder: Path, settings: Mapping[str, Any], sae: TopKSAE) -> dict[str, Any]:
    """Return the card of an SAE that Excise exported, only its Site if its weights have changed; empty for others."""
    metadata = settings.get("metadata")
    kept = settings.get(CARD) or (metadata.get(CARD) if isinstance(metadata, Mapping) else None)
    if not kept:
        return {}
    card = kept.get("card") if isinstance(kept, dict) else None
    site = card.get("site") if isinstance(card, dict) else None
    if not isinstance(card, dict) or not (site is None or _is_site(site, sae.config.d)):
        raise ExciseError(f"the SAE in {folder} has an unknown {CARD} {shown(kept)}; export it again")
    return card if kept.get("sha256") == digest(sae) else {"site": site}


def _is_site(site: object, width: int) -> bool:
    if not isinstance(site, dict) or set(site) != {"component", "path", "width"} or site["width"] != width:
        return False
    return isinstance(site["component"], str) and isinstance(site["path"], str)


def _sae(folder: Path, read: Read) -> TopKSAE:
    found, k = read.parameters, read.k
    if k is None:
        raise ExciseError(f"the SAE's settings in {folder} do not state its k")
    m, d = found["W_enc"].shape if found["W_enc"].ndim == 2 else (0, 0)
    for name, stated, actual in (("width", read.d, d), ("number of latents", read.m, m)):
        if stated not in (None, actual):
            raise ExciseError(
                f"the SAE's settings in {folder} state the {name} {shown(stated)}, its tensors have {actual}"
            )
    sae = TopKSAE(SAEConfig(d=int(d), m=int(m), k=k))  # type: ignore[arg-type]  # SAEConfig refuses other types
    for name, parameter in sae.state_dict().items():
        if found[name].shape != parameter.shape:
            raise ExciseError(f"{name} in {folder} is {tuple(found[name].shape)}, not {tuple(parameter.shape)}")
        if not torch.isfinite(found[name]).all():
            raise ExciseError(f"{name} in {folder} contains NaN or infinity; fetch it again")
    sae.load_state_dict(found)
    return sae.eval()


def _folder(path: Path) -> Path:
    """Return the folder at `path`, or the folder of a weights file at `path`."""
    if path.is_file() and path.name in {form.weights for form in FORMATS}:
        return path.parent
    if not path.exists():
        raise NotFound(
            f"there is no folder {path}; an SAE is read from the disk: download it from the hub first, with "
            "`hf download OWNER/NAME --local-dir FOLDER`, and name that folder"
        )
    return path


def _nothing_there(folder: Path) -> str:
    layouts = ", ".join(f"{form.config} with {form.weights}" for form in FORMATS)
    inside = sorted(
        str(path.parent.relative_to(folder)) for form in FORMATS for path in folder.glob(f"*/**/{form.weights}")
    )
    if inside:
        return f"{folder} holds {len(inside)} SAEs in subfolders; name one, such as {folder / inside[0]}"
    return f"{folder} does not hold a published SAE; it takes one of {layouts}"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ExciseError(f"cannot read {path} ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ExciseError(f"{path} is not a json object; fetch it again")
    return content


def _tensors(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load(read_tensors(path))
        return read_checkpoint(path, "state_dict")
    except Exception as error:  # for bytes that are not a file of that kind, torch raises all sorts of exceptions
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExciseError(f"cannot read {path} as tensors alone ({reason[:120]}); fetch it again") from error
