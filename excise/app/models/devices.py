"""Which of several graphics cards a process uses."""

from __future__ import annotations

import os
from collections.abc import Mapping


def card_of(device: str, cards: int, number: int | None) -> str:
    """The device of process `number` of several that are given the same one: they take turns over the visible cards.

    Only a bare `cuda` leaves the choice open; `cuda:1`, `cpu` and `mps` are what they say. `number` None: the process
    is alone.
    """
    if device != "cuda" or number is None or cards < 1:
        return device
    return f"cuda:{number % cards}"


def rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """This process's number on this machine, as torchrun and `accelerate launch` give it; None where it is alone."""
    said = environment.get("LOCAL_RANK", "")
    return int(said) if said.isdigit() else None


def visible_cards() -> int:
    """Graphics cards that this process sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
