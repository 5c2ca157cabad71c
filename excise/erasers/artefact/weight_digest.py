"""Digests of a model's weights, under names that do not depend on the program or version that holds them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

CANONICAL = "canonical"
"""How an eraser says that the digests of its encoders are of `canonical` names: `made_for["names"]`."""
_OTHERS = re.compile(r"^(?:model\.)?(?:visual|vision_tower|vision_model|multi_modal_projector|lm_head)\.")
_LANGUAGE = re.compile(r"^(?:model\.)?(?:language_model\.)?(?=(?:layers|embed_tokens|norm)\.)")
HALF = (torch.float16,)
VIA_HALF = (torch.float16, torch.bfloat16, torch.float16)
DIRECT = (torch.bfloat16, torch.float16)
"""Casts of weights before they are hashed: to float16, and the two ways in which bfloat16 weights were rounded."""


def plain(names: Iterable[str]) -> dict[str, str]:
    """Return the names that are hashed, by those of a state dict, as in erasers of the format 1.

    The prefix `text_model.` and position ids, a constant, are stored by some versions of transformers only.
    """
    return {name: name.removeprefix("text_model.") for name in names if not name.endswith("position_ids")}


def canonical(names: Iterable[str]) -> dict[str, str]:
    """Return the names that are hashed, by those of a text encoder's state dict.

    Only the text tower counts: no image tower and no head that predicts words. A language model's prefixes are removed,
    and T5's word embeddings are listed once, as `shared.weight`. CLIP's names are those of `plain`.
    """
    found = {name: _LANGUAGE.sub("", short) for name, short in plain(names).items() if not _OTHERS.match(name)}
    if "shared.weight" in found.values():
        found = {name: short for name, short in found.items() if short != "encoder.embed_tokens.weight"}
    return found


def weights_digest(
    names: Mapping[str, str], weight: Callable[[str], Tensor], casts: Sequence[torch.dtype] = HALF
) -> str:
    """Return the sha256 of weights in the order of their hashed names.

    Args:
        names: The hashed name of each weight, from `plain` or `canonical`.
        weight: Returns a weight by its name in the model. It is called once for each.
        casts: Dtypes that a weight of floating-point numbers is cast to, one after the other.
    """
    digest = hashlib.sha256()
    for short, name in sorted((short, name) for name, short in names.items()):
        tensor = weight(name).detach()
        digest.update(f"{short}{tuple(tensor.shape)}".encode())
        if tensor.is_floating_point():
            for dtype in casts:
                tensor = tensor.to(dtype)
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
