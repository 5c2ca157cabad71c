"""Export of SAEs as files that SAELens and sparsify load. Ours is the same formula, so nothing has to be folded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from excise.errors import ExciseError, InvalidSetting, shown
from excise.files import write_folder
from excise.sae.exchange.read import CARD, digest
from excise.sae.model import TopKSAE
from excise.sae.storage import StrPath

SAE_LENS = "6.54.12"
"""SAELens's version whose settings are written. SAELens reads those of any version from 6.0 the same way."""
FILES = {"saelens": ("cfg.json", "sae_weights.safetensors"), "sparsify": ("cfg.json", "sae.safetensors")}
"""Libraries that SAEs can be written for, and the files of each."""


def export(sae: TopKSAE, folder: StrPath, to: str, *, card: Mapping[str, Any] | None = None) -> None:
    """Write an SAE as SAELens or sparsify loads it, atomically: there it gives the same codes, up to rounding.

    SAELens loads it by `SAE.load_from_disk(folder)`, sparsify by `SparseCoder.load_from_disk(folder)`. Weights are
    float32. The card goes along, so that `read_published` gives back the same SAE.

    Args:
        sae: The SAE.
        folder: A new or empty folder, or that of another exported SAE, which is replaced.
        to: `"saelens"` or `"sparsify"`.
        card: Description, as json; by default `sae.card`.

    Raises:
        InvalidSetting: if `to` is another library.
        ExciseError: if a weight is NaN or infinite, the folder holds other files, the card is not json, or the disk
            refuses.

    Example:
        >>> excise.sae.export(sae, "sae-for-saelens", "saelens")
    """
    write_folder(Path(folder), packed(sae, to, sae.card if card is None else card))


def packed(sae: TopKSAE, to: str, card: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files' bytes by name. Raises as `export` does."""
    if to not in FILES:
        raise InvalidSetting(f"an SAE cannot be written for {shown(to)}; choose {' or '.join(FILES)}")
    own = {name: tensor.detach().cpu().float() for name, tensor in sae.state_dict().items()}
    for name, tensor in own.items():
        if not torch.isfinite(tensor).all():
            raise ExciseError(f"the SAE's {name} contains NaN or infinity; train it again")
    same = TopKSAE(sae.config)
    same.load_state_dict(own)
    kept = {"card": dict(card), "sha256": digest(same)}
    settings, tensors = (_sae_lens if to == "saelens" else _sparsify)(same, kept)
    try:
        text = json.dumps(settings, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ExciseError(f"the SAE's card cannot be written as json: {error}") from error
    config, weights = FILES[to]
    saved = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    return {config: text.encode(), weights: safetensors.torch.save(saved, {"format": "pt"})}


Packed = tuple[dict[str, Any], dict[str, torch.Tensor]]


def _sae_lens(sae: TopKSAE, kept: Mapping[str, Any]) -> Packed:
    card = kept["card"]
    metadata = {"sae_lens_version": SAE_LENS, "sae_lens_training_version": None, CARD: kept}
    if isinstance(site := card.get("site"), Mapping):
        metadata["hook_name"] = f"{site.get('component')}.{site.get('path')}"
    if card.get("model") is not None:
        metadata["model_name"] = str(card["model"])
    settings = {
        "architecture": "topk",
        "d_in": sae.config.d,
        "d_sae": sae.config.m,
        "k": sae.config.k,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "rescale_acts_by_decoder_norm": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
    }
    return settings, {"W_enc": sae.W_enc.T, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_pre}


def _sparsify(sae: TopKSAE, kept: Mapping[str, Any]) -> Packed:
    # sparsify's training restores unit rows if this is set. What it loads, it leaves as it is.
    lengths = sae.W_dec.norm(dim=1)
    settings: dict[str, Any] = {
        "d_in": sae.config.d,
        "activation": "topk",
        "expansion_factor": max(1, sae.config.m // sae.config.d),
        "normalize_decoder": bool(torch.allclose(lengths, torch.ones_like(lengths), atol=1e-5)),
        "num_latents": sae.config.m,
        "k": sae.config.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        CARD: kept,
    }
    return settings, {
        "encoder.weight": sae.W_enc,
        "encoder.bias": sae.b_enc,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_pre,
    }
