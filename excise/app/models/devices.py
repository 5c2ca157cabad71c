"""Choice of a GPU for each of several processes."""

from __future__ import annotations

import os
from collections.abc import Mapping


def card_of(device: str, cards: int, number: int | None) -> str:
    """Return the device of process `number`: with `cuda`, processes take turns over the visible GPUs.

    Other devices, such as `cuda:1`, `cpu` and `mps`, are returned as given. `number` is None for a single process.
    """
    if device != "cuda" or number is None or cards < 1:
        return device
    return f"cuda:{number % cards}"


def rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return this process's number on this machine, as torchrun and `accelerate launch` set it, or None."""
    local_rank = environment.get("LOCAL_RANK", "")
    return int(local_rank) if local_rank.isdigit() else None


def visible_cards() -> int:
    """Return how many GPUs this process sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
