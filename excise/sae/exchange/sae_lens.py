"""SAELens's layout: which of its architectures a TopK SAE can be, and how one is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excise.errors import ExciseError, shown
from excise.sae.exchange.read import Read, only, transposed, words

SETTINGS = words(
    # What the codes depend on.
    "architecture d_in d_sae k apply_b_dec_to_input rescale_acts_by_decoder_norm normalize_activations "
    "reshape_activations activation_fn activation_fn_str activation_fn_kwargs "
    # What it was trained on, and by which version.
    "metadata dtype device model_name hook_name hook_point hook_layer hook_point_layer hook_head_index "
    "hook_point_head_index model_class_name model_from_pretrained_kwargs prepend_bos exclude_special_tokens "
    "neuronpedia_id context_size seqpos_slice dataset_path dataset_trust_remote_code sae_lens_version "
    "sae_lens_training_version "
    # What a training of a topk or standard SAE adds in its checkpoints.
    "decoder_init_norm use_sparse_activations aux_loss_coefficient l1_coefficient lp_norm l1_warm_up_steps"
)
"""All settings that an SAE may have."""
READABLE = ("standard", "topk")
"""Architectures that can be read."""
_MAPS = "predicts another layer"
DOES = {
    "abstopk": "keeps negative codes",
    "batchtopk": "is a checkpoint of a training that chooses the codes of a batch together",
    "gated": "lets one bias decide which codes are kept and another how large they are",
    "jumprelu": "keeps every code above a threshold, however many there are",
    "jumprelu_skip_transcoder": _MAPS,
    "jumprelu_transcoder": _MAPS,
    "matching_pursuit": "chooses its codes one after another",
    "matryoshka_batchtopk": "is a checkpoint of a training that chooses the codes of a batch together",
    "skip_transcoder": _MAPS,
    "temporal": "reads the states before a state too",
    "transcoder": _MAPS,
}
"""Architectures of SAELens 6.54.12 that cannot be read, and what each does that a TopK SAE does not."""
SCALES = {
    "constant_norm_rescale": "scales every vector to one length",
    "covariance_whitening": "whitens what it reads; SAELens folds this into the weights when a training ends",
    "expected_average_only_in": "scales what it reads; SAELens folds this into the weights when a training ends",
    "layer_norm": "normalises every vector",
}
"""Values of `normalize_activations` and what they do."""


def kind(settings: Mapping[str, Any]) -> str:
    """Return `topk`, `standard` or another architecture; version 5 wrote topk as standard with that activation."""
    activation = settings.get("activation_fn", settings.get("activation_fn_str"))
    architecture = settings.get("architecture", "standard")
    if architecture == "standard" and activation == "topk":
        return "topk"
    name = architecture if isinstance(architecture, str) else shown(architecture)
    usual = {"topk": "topk", "standard": "relu"}.get(name, activation)
    return name if activation in (None, usual) else f"{name} with {activation}"


def check(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise ExciseError, with the reason, unless the settings are of an SAE that a TopK SAE can be."""
    found, scaled = kind(settings), settings.get("normalize_activations")
    if found not in READABLE:
        metadata = settings.get("metadata")
        trained = metadata.get("training_architecture", found) if isinstance(metadata, Mapping) else found
        does = f" (trained as {shown(trained)})" if trained != found else ""
        does += f", which {DOES[found]}" if found in DOES else ""
        raise ExciseError(
            f"the SAE in {folder} is of SAELens's architecture {found}{does}; only topk and standard can be read"
        )
    if scaled not in (None, False, "none"):
        does = SCALES.get(shown(scaled).strip("'"), "scales what it reads")
        raise ExciseError(f"the SAE in {folder} {does} (normalize_activations={shown(scaled)}), which ours cannot")
    only(folder, settings, "reshape_activations", "none")
    hook = str(settings.get("hook_name", settings.get("hook_point", "")))
    if "hook_z" in hook and "reshape_activations" not in settings:
        raise ExciseError(f"the SAE in {folder} reads attention heads side by side (hook_z), which ours cannot")


def read(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Read:
    """Return our parameters; raises ExciseError if the tensors do not fit each other."""
    options = settings.get("activation_fn_kwargs") or {}
    if not isinstance(options, Mapping):
        raise ExciseError(
            f"the SAE in {folder} has the activation_fn_kwargs {shown(options)}, not an object of settings"
        )
    if odd := sorted(set(options) - {"k"}):
        raise ExciseError(f"the SAE in {folder} has the unknown setting {odd[0][:60]}={shown(options[odd[0]])}")
    encoder, decoder = transposed(tensors["W_enc"], torch.float64), tensors["W_dec"].double()
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
    topk = kind(settings) == "topk"
    if topk and settings.get("rescale_acts_by_decoder_norm", False):
        # Codes are scaled by the decoder row's length: fold it into the encoder and out of the decoder.
        length = decoder.norm(dim=1)
        encoder, bias, decoder = encoder * length[:, None], bias * length, decoder / length[:, None]
    parameters = {"W_enc": encoder.float(), "b_enc": bias.float(), "W_dec": decoder.float(), "b_pre": centre.float()}
    # A standard SAE keeps every positive code, as ours does with k = m.
    k = settings.get("k", options.get("k")) if topk else len(encoder)
    return Read(parameters, k, settings.get("d_in"), settings.get("d_sae"))
