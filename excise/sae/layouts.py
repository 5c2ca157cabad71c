"""File layouts of other libraries' SAEs: their files, allowed settings and tensors, and how to read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from excise.errors import ExciseError, shown


class Read(NamedTuple):
    """Result of a format's reader: our parameters, and the shape that the settings state."""

    parameters: dict[str, Tensor]
    k: object
    d: object
    m: object
    """None if not stated."""


@dataclass(frozen=True)
class Format:
    """Layout of one library."""

    config: str
    weights: str
    settings: frozenset[str]
    """All settings it may have."""
    tensors: frozenset[str]
    """All tensors that it must have."""
    unused: frozenset[str]
    """Tensors that it may have, which its codes do not depend on."""
    read: Callable[[Path, Mapping[str, Any], Mapping[str, Tensor]], Read]


def _sparsify(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Read:
    # With `batch_topk` and `sample_topk` a batch shares its latents in training. SAEuron's published code switches both
    # off before it reads a code, so that each vector keeps its own k.
    _only(folder, settings, "activation", "topk")
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
        "W_dec": _transposed(tensors["decoder.weight"]),
        "b_pre": tensors["pre_bias"].float(),
    }
    return Read(parameters, settings.get("k"), settings.get("d_model"), settings.get("n_dirs_local"))


def _dictionary_learning(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Read:
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
    if odd := sorted(set(trainer) - DICTIONARY_TRAINER):
        raise ExciseError(f"the SAE in {folder} has the unknown setting {odd[0][:60]}={shown(trainer[odd[0]])}")
    k = trainer.get("k")
    if "k" in tensors and tensors["k"].numel() == 1 and (held := tensors["k"].item()) != k:
        raise ExciseError(f"the SAE's settings in {folder} state k {shown(k)}, its tensors {held}")
    parameters = {
        "W_enc": tensors["encoder.weight"].float(),
        "b_enc": tensors["encoder.bias"].float(),
        "W_dec": _transposed(tensors["decoder.weight"]),
        "b_pre": tensors["b_dec"].float(),
    }
    return Read(parameters, k, trainer.get("activation_dim"), trainer.get("dict_size"))


def _sae_lens(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Read:
    # Version 5 and older wrote a TopK SAE as `standard` with an activation function.
    activation = settings.get("activation_fn", settings.get("activation_fn_str"))
    options = settings.get("activation_fn_kwargs") or {}
    if not isinstance(options, Mapping):
        raise ExciseError(
            f"the SAE in {folder} has the activation_fn_kwargs {shown(options)}, not an object of settings"
        )
    architecture = settings.get("architecture", "standard")
    if architecture == "standard" and activation == "topk":
        architecture = "topk"
    if architecture != "topk" or activation not in (None, "topk"):
        what = architecture if activation in (None, "topk") else f"{architecture} with {activation}"
        raise ExciseError(f"the SAE in {folder} is of SAELens's architecture {what}; only topk can be read")
    if odd := sorted(set(options) - {"k"}):
        raise ExciseError(f"the SAE in {folder} has the unknown setting {odd[0][:60]}={shown(options[odd[0]])}")
    if settings.get("normalize_activations") not in (None, False, "none"):
        kind = settings["normalize_activations"]
        raise ExciseError(f"the SAE in {folder} normalises what it reads (normalize_activations={kind}): ours cannot")
    _only(folder, settings, "reshape_activations", "none")
    hook = str(settings.get("hook_name", settings.get("hook_point", "")))
    if "hook_z" in hook and "reshape_activations" not in settings:
        raise ExciseError(f"the SAE in {folder} reads attention heads side by side (hook_z), which ours cannot")
    encoder, decoder = _transposed(tensors["W_enc"], torch.float64), tensors["W_dec"].double()
    bias, centre = tensors["b_enc"].double(), tensors["b_dec"].double()
    if (
        encoder.ndim != 2
        or encoder.shape != decoder.shape
        or bias.shape != encoder.shape[:1]
        or centre.shape != encoder.shape[1:]
    ):
        raise ExciseError(f"the tensors in {folder} do not fit each other; fetch it again")
    if not settings.get("apply_b_dec_to_input", True):
        # Ours subtracts b_pre from its input: compensate in the encoder's bias.
        bias = bias + encoder @ centre
    if settings.get("rescale_acts_by_decoder_norm", False):
        # Codes are scaled by the decoder row's length: fold it into the encoder and out of the decoder.
        length = decoder.norm(dim=1)
        encoder, bias, decoder = encoder * length[:, None], bias * length, decoder / length[:, None]
    parameters = {"W_enc": encoder.float(), "b_enc": bias.float(), "W_dec": decoder.float(), "b_pre": centre.float()}
    return Read(parameters, settings.get("k", options.get("k")), settings.get("d_in"), settings.get("d_sae"))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DICTIONARY_TRAINER = _words(
    "trainer_class dict_class lr steps auxk_alpha warmup_steps decay_start threshold_beta threshold_start_step "
    "top_k_aux seed activation_dim dict_size k device layer lm_name wandb_name submodule_name"
)
"""Settings of dictionary_learning's trainers of a TopK SAE."""
FORMATS = (
    Format(
        "cfg.json",
        "sae.safetensors",
        _words("d_in num_latents expansion_factor k activation normalize_decoder multi_topk batch_topk sample_topk"),
        frozenset({"encoder.weight", "encoder.bias", "W_dec", "b_dec"}),
        frozenset(),
        _sparsify,
    ),
    Format(
        "config.json",
        "state_dict.pth",
        frozenset({"n_dirs_local", "d_model", "k", "auxk", "auxk_coef", "dead_steps_threshold"}),
        frozenset({"encoder.weight", "latent_bias", "decoder.weight", "pre_bias"}),
        frozenset({"stats_last_nonzero"}),
        _k_sparse,
    ),
    Format(
        "cfg.json",
        "sae_weights.safetensors",
        _words(
            # What the codes depend on.
            "architecture d_in d_sae k apply_b_dec_to_input rescale_acts_by_decoder_norm normalize_activations "
            "reshape_activations activation_fn activation_fn_str activation_fn_kwargs "
            # What it was trained on, and by which version.
            "metadata dtype device model_name hook_name hook_point hook_layer hook_point_layer hook_head_index "
            "hook_point_head_index model_class_name model_from_pretrained_kwargs prepend_bos exclude_special_tokens "
            "neuronpedia_id context_size seqpos_slice dataset_path dataset_trust_remote_code sae_lens_version "
            "sae_lens_training_version"
        ),
        frozenset({"W_enc", "b_enc", "W_dec", "b_dec"}),
        frozenset(),
        _sae_lens,
    ),
    Format(
        "config.json",
        "ae.pt",
        frozenset({"trainer", "buffer"}),
        frozenset({"encoder.weight", "encoder.bias", "decoder.weight", "b_dec"}),
        # AutoEncoderTopK stores a threshold without using it; BatchTopKSAE uses it, and is refused.
        frozenset({"k", "threshold"}),
        _dictionary_learning,
    ),
)


def _only(folder: Path, settings: Mapping[str, Any], key: str, value: str) -> None:
    if settings.get(key, value) != value:
        raise ExciseError(f"the SAE in {folder} has the {key} {shown(settings[key])}; only {value} can be read")


def _transposed(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return tensor.to(dtype).T.contiguous() if tensor.ndim == 2 else tensor.to(dtype)
