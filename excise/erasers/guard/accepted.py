"""Accepted: copies of the text states that a denoiser guard has accepted, to recognise them in the next step."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 8
"""Most calls of the denoiser kept for an image: a pipeline may run it once for each branch of guidance and each text
encoder."""


@dataclass(eq=False)
class Look:
    """The text states of one accepted call of the denoiser."""

    under: object
    """What they were accepted under. Equal only while they would be accepted again."""
    states: tuple[Tensor, ...]
    """Private copies."""
    generation: int
    """The generation of the known vectors in which these were last looked up."""


class Accepted:
    """The latest accepted calls of each image, freed with the image.

    Values are compared, not objects, addresses or PyTorch's write counters: `tensor.data`, NumPy and a freed tensor's
    memory can hold other values under the same object, counter or address. Comparing takes one answer of the device,
    whatever the number of tensors.
    """

    def __init__(self) -> None:
        self._looks: weakref.WeakKeyDictionary[object, tuple[Look, ...]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def find(self, image: object, under: object, states: Sequence[Tensor]) -> Look | None:
        """Return the call with these values that was accepted in `image` under an equal `under`, or None.

        Args:
            image: What the calls belong to. Any object with weak references.
            under: What must not have changed since.
            states: All text states of the call, of any shapes.

        Returns:
            A call only if every value is equal. NaN equals nothing.
        """
        with self._lock:
            looks = self._looks.get(image, ())
        alike = [look for look in looks if look.under == under and _signature(look.states) == _signature(states)]
        return _equal_one(alike, states) if alike else None

    def add(self, image: object, look: Look) -> None:
        """Remember a call. Nothing else may write to its states."""
        with self._lock:
            self._looks[image] = (look, *self._looks.get(image, ()))[:MOST]

    def clear(self) -> None:
        """Forget all calls."""
        with self._lock:
            self._looks.clear()


def _signature(states: Sequence[Tensor]) -> list[tuple[torch.Size, torch.dtype, torch.device]]:
    return [(state.shape, state.dtype, state.device) for state in states]


def _equal_one(looks: Sequence[Look], states: Sequence[Tensor]) -> Look | None:
    """Return the one of `looks` with equal states. All have their shapes, dtypes and devices."""
    devices = {state.device for state in states}
    if len(looks) == len(states) == 1 or len(devices) > 1 or devices == {torch.device("cpu")}:
        # `torch.equal` stops at the first difference, and on a CPU its answer is there at once.
        return next((look for look in looks if all(map(torch.equal, states, look.states))), None)
    same = [torch.stack([(a == b).all() for a, b in zip(states, look.states, strict=True)]).all() for look in looks]
    found = torch.stack([*same, torch.ones_like(same[0])]).int().argmax()  # the first, or else the last
    return (*looks, None)[int(found)]
