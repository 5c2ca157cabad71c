"""Gates that all blocks of one denoiser open together."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from excise.erasers.edits.base import StepInfo
from excise.erasers.edits.block_sae import OpenGates


class SharedGates(OpenGates):
    """Gates of images, which a block opens for itself, for the blocks after it, and for all of them at later steps."""

    def __init__(self, *, rising: bool = True) -> None:
        super().__init__(rising=rising)
        self._image: Callable[[], Any] = lambda: None

    def begin(self) -> None:
        super().begin()
        self._call: StepInfo | None = None
        self._aside: dict[int, Tensor] = {}
        self._places: dict[int, tuple[tuple[int, int], int]] = {}

    def belong_to(self, image: Any) -> None:
        """Close all gates if `image`, what the pipeline's call is known by, is another one. None is not known."""
        if self._image() is not image:
            self.begin()
            self._image = weakref.ref(image) if image is not None else lambda: None

    def across(self, mask: Tensor, step: StepInfo) -> Tensor:
        """Return `mask` `[B, 1]` of this block, or'ed with those of the blocks before and of the same images before.

        `step` is the denoiser call's own object, the same for all its blocks. A call that does not belong to a
        generation opens no gate of a later one.
        """
        size = len(mask)
        if step is not self._call:
            self._aside, self._places = {}, {}
        if not step.drawing:
            self._call = step
            before = self._aside.get(size)
            self._aside[size] = mask = mask if before is None else mask | before.to(mask.device)
            return mask
        if step is self._call and size in self._places:
            key, start = self._places[size]
            whole = self._masks[key].to(mask.device)
            mask = mask | whole[start:]
            self._masks[key] = torch.cat([whole[:start], mask])
            return mask
        mask = self.joined(mask, step.timesteps[0])
        self._call, self._places[size] = step, self.latest
        return mask
