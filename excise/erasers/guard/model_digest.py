"""Digests of the model an eraser was made for: weights of text encoders and denoisers, and tokenizer behaviour."""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from excise.erasers.artefact.weight_digest import CANONICAL, DIRECT, HALF, VIA_HALF, canonical, plain, weights_digest
from excise.erasers.guard.weights_watch import kept_elsewhere, named_denoisers
from excise.errors import ExciseError
from excise.files import open_regular
from excise.pipeline import Pipeline
from excise.sites.denoiser import denoiser_of
from excise.sites.encoding import call_defaults
from excise.sites.locking import own_copy
from excise.sites.site import text_encoders, tokenizer_of

Naming = Callable[[Iterable[str]], dict[str, str]]
_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")
_vocabularies: deque[tuple[dict[str, int], Any]] = deque(maxlen=4)
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_PROBES = (
    "a photo of a gun next to a cat on a wooden table",
    "A Naïve café — 東京, 100% (done) #1 :: \U0001f52b's",
    "naked nude violence blood knife revolver unbelievably pseudopseudohypoparathyroidism",
    "",
)
"""Strings whose token ids represent the tokenizer's merges and normalisation, whatever its class."""


def encoder_digests(encoder: nn.Module, naming: Naming = plain) -> dict[str, list[str]]:
    """Return digests of the weights by precision, so that an eraser fitted in float32 recognises the model in float16
    and bfloat16.

    A bfloat16 model may have been rounded from float32 or from float16 files, hence up to two digests.
    """
    half = _digest(encoder, HALF, naming)
    if next(encoder.parameters()).dtype == torch.bfloat16:
        return {"bfloat16": [half]}
    via_half, direct = _digest(encoder, VIA_HALF, naming), _digest(encoder, DIRECT, naming)
    return {"float16": [half], "bfloat16": sorted({direct, via_half})}


def encoder_matches(encoder: nn.Module, digests: dict[str, list[str]], naming: Naming = plain) -> bool:
    """Whether the encoder's weights have these `encoder_digests`, up to rounding to its dtype.

    Weights whose values are all bfloat16's are bfloat16 weights in any dtype: diffusers' `from_pipe` casts to float32.
    """
    half = _digest(encoder, HALF, naming)
    is_bfloat16 = next(encoder.parameters()).dtype == torch.bfloat16
    if not is_bfloat16 and half in digests.get("float16", []):
        return True
    return half in digests.get("bfloat16", []) and (is_bfloat16 or _holds_bfloat16(encoder, naming))


def model_digests(pipe: Pipeline) -> dict[str, str]:
    """Return the sha256 of each text encoder's and the denoiser's weights, rounded to float16, by component."""
    components = {**text_encoders(pipe), **dict([denoiser_of(pipe)])}
    return {name: _digest(module, HALF) for name, module in components.items()}


def text_encoder_digests(pipe: Pipeline) -> dict[str, str]:
    """Return the sha256 of each text encoder's weights, rounded to float16, by component."""
    return {name: _digest(module, HALF) for name, module in text_encoders(pipe).items()}


def _digest(encoder: nn.Module, casts: tuple[torch.dtype, ...], naming: Naming = plain) -> str:
    if any(map(_is_on_disk, encoder.modules())):
        raise ExciseError(
            "group offloading keeps the model's weights on disk, where an eraser cannot check them; enable it without "
            "offload_to_disk_path"
        )
    state = encoder.state_dict()
    return weights_digest(naming(state), lambda name: _weight(encoder, name, state[name]), casts)


def _holds_bfloat16(encoder: nn.Module, naming: Naming) -> bool:
    """Whether no weight has a value that is rounded in bfloat16."""
    state = encoder.state_dict()
    weights = (_weight(encoder, name, state[name]) for name in naming(state))
    return all(torch.equal(w.to(torch.bfloat16).to(w.dtype), w) for w in weights if w.is_floating_point())


def _weight(encoder: nn.Module, name: str, tensor: Tensor | None) -> Tensor:
    """Return a weight of the encoder's state dict, wherever an offloading keeps it."""
    if tensor is not None and tensor.is_meta:
        path, _, parameter = name.rpartition(".")
        tensor = kept_elsewhere(encoder.get_submodule(path), parameter)
    if tensor is None:
        raise ExciseError(f"the model's weights ({name}) are not in memory; attach the eraser before enabling offload")
    return tensor


def _is_on_disk(module: nn.Module) -> bool:
    """Whether diffusers frees the module's weights between runs, so that its memory holds anything."""
    hooks = getattr(vars(module).get("_diffusers_hook"), "hooks", {})
    groups = (getattr(hook, "group", None) for hook in hooks.values())
    return any(getattr(group, "offload_to_disk_path", None) is not None for group in groups)


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a digest of the vocabulary, the special ids and the ids of probe strings. It is the same in every
    transformers version."""
    copied = own_copy(tokenizer)
    ids = copied(list(_PROBES), truncation=True)["input_ids"]
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.model_max_length]
    digest = _vocabulary_digest(tokenizer.get_vocab())
    digest.update(f", {json.dumps(special)}, {json.dumps([list(i) for i in ids])}]".encode())
    return str(digest.hexdigest())


def _vocabulary_digest(vocabulary: dict[str, int]) -> Any:
    """Return a sha256 object that has read "[" and the sorted vocabulary as JSON.

    The last few vocabularies are cached. Comparing one entry by entry is faster than sorting and writing it.
    """
    for known, digest in tuple(_vocabularies):
        if known == vocabulary:
            return digest.copy()
    digest = hashlib.sha256(f"[{json.dumps(sorted(vocabulary.items()))}".encode())
    # A copy, since some tokenizers return the dictionary they work with.
    _vocabularies.append((dict(vocabulary), digest))
    return digest.copy()


def made_for(pipe: Pipeline, denoisers: Iterable[str] = ()) -> dict[str, Any]:
    """Describe the pipeline that an eraser is fitted on, for its record.

    It has the pipeline's class and the digests of every text encoder, every tokenizer and the edited `denoisers`. If
    known, it also has the model's name on the hub and digests of the text encoders' files. Name and files are
    provenance only: `mismatches` compares the digests of weights in memory.
    """
    encoders = text_encoders(pipe)
    states = [encoder.state_dict() for encoder in encoders.values()]
    renamed = any(canonical(state) != plain(state) for state in states)
    naming = canonical if renamed else plain
    source = str(getattr(pipe, "name_or_path", None) or "")
    edited = {name: encoder_digests(whole) for name, whole in named_denoisers(pipe, denoisers).items()}
    return {
        **({"denoisers": edited} if edited else {}),
        **({"names": CANONICAL, "lengths": _lengths(pipe, encoders)} if renamed else {}),
        "pipeline": type(pipe).__name__,
        "model": source if _HUB_NAME.match(source) and not Path(source).exists() else None,
        "files": _files(source, list(encoders)),
        "encoders": {name: encoder_digests(encoder, naming) for name, encoder in encoders.items()},
        "tokenizers": {name: tokenizer_digest(tokenizer_of(pipe, name)) for name in encoders},
    }


def _lengths(pipe: Pipeline, encoders: dict[str, nn.Module]) -> dict[str, int]:
    """Return the number of tokens that the pipeline pads prompts to, by T5 encoder.

    T5 reads in both directions and most pipelines do not mask the padding, so every state depends on this number.
    """
    length = call_defaults(pipe).get("max_sequence_length")
    if length is None:
        return {}
    return {name: length for name, encoder in encoders.items() if "shared.weight" in encoder.state_dict()}


def _files(source: str, components: list[str]) -> dict[str, str]:
    """Return the sha256 of the text encoders' weight files in a pipeline's folder or the hub's cache, if any.

    For a checkpoint in one file it is that file's.
    """
    if not source:
        return {}
    root = Path(source)
    if root.is_file():
        return {root.name: _file_digest(root)}
    if not root.is_dir():
        try:
            from huggingface_hub import try_to_load_from_cache

            index = try_to_load_from_cache(source, "model_index.json")
        except Exception:  # not a name on the hub
            return {}
        if not isinstance(index, str):
            return {}
        root = Path(index).parent
    found = sorted(path for name in components for path in (root / name).glob("*.safetensors"))
    return {path.relative_to(root).as_posix(): _file_digest(path) for path in found}


def _file_digest(path: Path) -> str:
    """Return the file's sha256. In the hub's cache it is the name of a large file."""
    stored = path.resolve().name
    if _SHA256.match(stored):
        return stored
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def mismatches(pipe: Pipeline, made: dict[str, Any], absent: Collection[str] = ()) -> list[str]:
    """Return the differences between `pipe` and the pipeline the eraser was made for, one clause each.

    Text encoders known to be `absent` do not count as a difference.
    """
    known, tokenizers = made.get("encoders"), made.get("tokenizers")
    if not isinstance(known, dict) or not isinstance(tokenizers, dict):
        return ["it does not state which model it was made for"]
    out = []
    encoders = text_encoders(pipe)
    naming = canonical if made.get("names") == CANONICAL else plain
    for name in sorted((set(encoders) | set(known)) - set(absent)):
        if name not in encoders:
            out.append(f"there is no {name}")
        elif not isinstance(known.get(name), dict):
            out.append(f"the eraser does not know {name}")
        else:
            if not encoder_matches(encoders[name], known[name], naming):
                out.append(f"{name}'s weights differ")
            if tokenizer_digest(tokenizer_of(pipe, name)) != tokenizers.get(name):
                out.append(f"{name}'s tokenizer differs")
    edited = made.get("denoisers", {})
    for name, digests in sorted(edited.items()) if isinstance(edited, dict) else ():
        if not isinstance(getattr(pipe, name, None), nn.Module):
            out.append(f"there is no {name}")
        elif not encoder_matches(denoiser_of(pipe, name)[1], digests):
            out.append(f"{name}'s weights differ")
    return out
