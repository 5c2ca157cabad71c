"""File layouts of other libraries' SAEs: their files, allowed settings and tensors, and how to read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from excise.errors import ExciseError, shown
from excise.sae.exchange import sae_lens
from excise.sae.exchange.read import CARD, Read, only, transposed, words


@dataclass(frozen=True)
class Format:
    """Layout of one library."""

    library: str
    config: str
    weights: str
    settings: frozenset[str]
    """All settings it may have."""
    tensors: frozenset[str]
    """All tensors that it must have."""
    unused: frozenset[str]
    """Tensors that it may have, which its codes do not depend on."""
    read: Callable[[Path, Mapping[str, Any], Mapping[str, Tensor]], Read]
    check: Callable[[Path, Mapping[str, Any]], None] | None = None
    """Raises ExciseError, with the reason, if the settings are of a kind that a TopK SAE cannot be."""


def _sparsify(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Read:
    # With `batch_topk` and `sample_topk` a batch shares its latents in training. SAEuron's published code switches both
    # off before it reads a code, so that each vector keeps its own k.
    parameters = {
        "W_enc": tensors["encoder.weight"].float(),
        "b_enc": tensors["encoder.bias"].float(),
        "W_dec": tensors["W_dec"].float(),
        "b_pre": tensors["b_dec"].float(),
    }
    return Read(parameters, settings.get("k"), settings.get("d_in"), settings.get("num_latents") or None)


def _k_sparse(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Read:
    parameters = {
        "W_enc": tensors["encoder.weight"].float(),
        "b_enc": tensors["latent_bias"].float(),
        "W_dec": transposed(tensors["decoder.weight"]),
        "b_pre": tensors["pre_bias"].float(),
    }
    return Read(parameters, settings.get("k"), settings.get("d_model"), settings.get("n_dirs_local"))


def _check_sparsify(folder: Path, settings: Mapping[str, Any]) -> None:
    if settings.get("activation") == "groupmax":
        raise ExciseError(
            f"the SAE in {folder} keeps the largest code of each of k groups (activation groupmax); ours keeps the k "
            "largest, so only topk can be read"
        )
    only(folder, settings, "activation", "topk")


def _check_dictionary_learning(folder: Path, settings: Mapping[str, Any]) -> None:
    trainer, buffer = settings.get("trainer"), settings.get("buffer") or {}
    if not isinstance(trainer, Mapping) or not isinstance(buffer, Mapping):
        raise ExciseError(f"{folder / 'config.json'} does not state what trained the SAE (trainer); fetch it again")
    kind = trainer.get("dict_class")
    if kind == "BatchTopKSAE":
        raise ExciseError(
            f"the SAE in {folder} is a BatchTopKSAE: it keeps every code above one threshold, however many there are, "
            "and ours keeps k; only AutoEncoderTopK of dictionary_learning can be read"
        )
    if kind != "AutoEncoderTopK":
        raise ExciseError(f"the SAE in {folder} is a {kind}; only AutoEncoderTopK of dictionary_learning can be read")
    if buffer.get("io") == "in_and_out":
        raise ExciseError(f"the SAE in {folder} predicts another layer (buffer.io), which ours cannot")


def _dictionary_learning(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Read:
    trainer = settings["trainer"]
    if odd := sorted(set(trainer) - DICTIONARY_TRAINER):
        raise ExciseError(f"the SAE in {folder} has the unknown setting {odd[0][:60]}={shown(trainer[odd[0]])}")
    k = trainer.get("k")
    if "k" in tensors and tensors["k"].numel() == 1 and (held := tensors["k"].item()) != k:
        raise ExciseError(f"the SAE's settings in {folder} state k {shown(k)}, its tensors {held}")
    parameters = {
        "W_enc": tensors["encoder.weight"].float(),
        "b_enc": tensors["encoder.bias"].float(),
        "W_dec": transposed(tensors["decoder.weight"]),
        "b_pre": tensors["b_dec"].float(),
    }
    return Read(parameters, k, trainer.get("activation_dim"), trainer.get("dict_size"))


DICTIONARY_TRAINER = words(
    "trainer_class dict_class lr steps auxk_alpha warmup_steps decay_start threshold_beta threshold_start_step "
    "top_k_aux seed activation_dim dict_size k device layer lm_name wandb_name submodule_name"
)
"""Settings of dictionary_learning's trainers of a TopK SAE."""
FORMATS = (
    Format(
        "sparsify",
        "cfg.json",
        "sae.safetensors",
        words("d_in num_latents expansion_factor k activation normalize_decoder multi_topk batch_topk sample_topk")
        | {CARD},
        frozenset({"encoder.weight", "encoder.bias", "W_dec", "b_dec"}),
        frozenset(),
        _sparsify,
        _check_sparsify,
    ),
    Format(
        "k-sparse",
        "config.json",
        "state_dict.pth",
        frozenset({"n_dirs_local", "d_model", "k", "auxk", "auxk_coef", "dead_steps_threshold"}),
        frozenset({"encoder.weight", "latent_bias", "decoder.weight", "pre_bias"}),
        frozenset({"stats_last_nonzero"}),
        _k_sparse,
    ),
    Format(
        "SAELens",
        "cfg.json",
        "sae_weights.safetensors",
        sae_lens.SETTINGS,
        frozenset({"W_enc", "b_enc", "W_dec", "b_dec"}),
        frozenset(),
        sae_lens.read,
        sae_lens.check,
    ),
    Format(
        "dictionary_learning",
        "config.json",
        "ae.pt",
        frozenset({"trainer", "buffer"}),
        frozenset({"encoder.weight", "encoder.bias", "decoder.weight", "b_dec"}),
        # AutoEncoderTopK stores a threshold without using it; BatchTopKSAE uses it, and is refused.
        frozenset({"k", "threshold"}),
        _dictionary_learning,
        _check_dictionary_learning,
    ),
)
