"""Comparison of a text encoder's weights in ComfyUI's memory with those an eraser was made for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product, starmap
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from excise.erasers.artefact.record import Artefact
from excise.erasers.artefact.weight_digest import CANONICAL, canonical, plain, weights_digest

from .layouts import LAYER, name_of, parts_of

_PROJECTION = "text_projection.weight"
BYPASS = "bypass_lora"
"""Key of the injection that adds a LoRA to what layers return, without a change of their weights."""
INSIDE = ".transformer."
"""What the names of an encoder's layers and weights contain."""
SAMPLES = 16
"""Number of values sampled from each weight."""
_made: WeakKeyDictionary[Any, dict[tuple[str, bool, int | None], tuple[Any, str]]] = WeakKeyDictionary()
"""Digests of encoders, with the addresses and write counters of the weights: hashing 5 billion weights takes long."""


def differences(patcher: Any, eraser: Artefact) -> list[str]:
    """Return what differs between the text encoder of `patcher` and the one an eraser was made for, a clause each."""
    known = eraser.made_for.get("encoders")
    if not isinstance(known, dict):
        return ["the eraser does not state which model it was made for"]
    naming = canonical if eraser.made_for.get("names") == CANONICAL else plain
    found = []
    for component, part in parts_of(patcher.model).items():
        digests = known.get(component)
        if not isinstance(digests, dict):
            found.append(f"the eraser does not know {component}")
            continue
        dtype = next(part.transformer.parameters()).dtype
        wanted = digests.get("bfloat16" if dtype == torch.bfloat16 else "float16", [])
        if not any(
            digest(patcher, part, naming, *left) in wanted for left in product((False, True), (None, _read(part)))
        ):
            found.append(f"{component}'s weights differ" + (f" (they are {dtype})" if dtype.itemsize < 2 else ""))
    return found


def _read(part: Any) -> int:
    """Return the number of layers that a part runs for the states it returns, unless clip skip is set."""
    options: tuple[Any, ...] = getattr(part, "options_default", ("last", None))
    layers: int = part.num_layers
    if options[0] != "hidden":
        return layers
    index: int = options[1]
    return index + 1 + (layers if index < 0 else 0)


def digest(patcher: Any, part: Any, naming: Any, projected: bool, layers: int | None = None) -> str:
    """Return the sha256 of an encoder's own weights, without LoRAs, rounded to float16.

    Args:
        patcher: ComfyUI's patcher, which keeps weights that it changed in place.
        part: One of the encoders in its model.
        naming: `canonical` or `plain`.
        projected: Whether CLIP's projection of the pooled state counts: ComfyUI gives every CLIP one, diffusers only
            those that use it.
        layers: How many first layers count; None means all. Stable Diffusion 2 has one less in diffusers.
    """
    state, prefix = part.transformer.state_dict(), f"{name_of(patcher.model, part)}.transformer."
    if "shared.weight" not in state and "encoder.embed_tokens.weight" in state:
        state["shared.weight"] = state["encoder.embed_tokens.weight"]

    def weight(name: str) -> Tensor:
        return own_weight(patcher, prefix + name, state[name])

    names = {name: short for name, short in naming(state).items() if projected or short != _PROJECTION}
    if layers is not None:
        names = {name: short for name, short in names.items() if not (at := LAYER.search(short)) or int(at[1]) < layers}
    stamp = [_stamp(weight(name)) for name in names]
    memory = _made.setdefault(part, {})
    key = (naming.__name__, projected, layers)
    if key not in memory or memory[key][0] != stamp:
        memory[key] = stamp, weights_digest(names, weight)
    return memory[key][1]


def changed_by_others(patcher: Any, own: Mapping[str, int], is_own: Callable[[str], bool]) -> str:
    """Return who else changes a text encoder's weights or layers: "a LoRA", another node, or "".

    Args:
        patcher: ComfyUI's patcher.
        own: Number of the erasers' own changes by weight.
        is_own: Whether a key of its injections is an eraser's.
    """
    counts = {key: sum(starmap(_changes, made)) for key, made in patcher.patches.items()}
    lora = any(count > own.get(key, 0) for key, count in counts.items()) or patcher.hook_patches
    if lora or BYPASS in patcher.injections:
        return "a LoRA"
    others = [key for key in patcher.injections if not is_own(key)]
    # Other objects, such as the function that applies the weights of words, act on states that are already erased.
    others += [key for key in patcher.object_patches if INSIDE in key]
    others += getattr(patcher, "weight_wrapper_patches", {})
    return f"another node ({others[0]})" if others else ""


def _changes(strength: float, _: Any, kept: float = 1.0, *more: Any) -> bool:
    """Whether one of a patcher's patches changes its weight: a LoRA of strength 0 does not."""
    return strength != 0 or kept != 1


def own_weight(patcher: Any, key: str, now: Tensor) -> Tensor:
    """Return a weight without LoRAs: ComfyUI keeps a copy of what it changed in place, and `now` is that."""
    kept = patcher.backup.get(key)
    own: Tensor = now if kept is None else kept.weight
    return own


def _stamp(tensor: Tensor) -> tuple[int, int, bytes]:
    """Return what changes when a weight does: its address, its write counter, and a few of its values.

    ComfyUI loads weights in inference mode, in which PyTorch counts no writes.
    """
    flat = tensor.detach().reshape(-1)
    values = flat[:: max(1, len(flat) // SAMPLES)].float().cpu().numpy().tobytes()
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version, values
