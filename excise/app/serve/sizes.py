"""The sizes of pictures that a pipeline can make."""

from __future__ import annotations

import math
from typing import Any

from excise.errors import InvalidSetting


def multiple(pipe: Any) -> int:
    """Return what a picture's width and height must be a multiple of.

    A pipeline that packs latents into patches tells so by its image processor, or by a patch size of its own. It fails
    at another size, or makes the next one.
    """
    scale = getattr(getattr(getattr(pipe, "image_processor", None), "config", None), "vae_scale_factor", 8)
    return math.lcm(8, scale * getattr(pipe, "patch_size", 1))


def own(pipe: Any) -> tuple[int, int] | None:
    """Return width and height of a picture whose size is left to the pipeline; None if only a picture tells."""
    side = getattr(pipe, "default_sample_size", None)
    if side is None:  # only Stable Diffusion 1 and 2 have a U-Net and not this
        side = getattr(getattr(getattr(pipe, "unet", None), "config", None), "sample_size", None)
    if side is None:
        return None
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    return width * pipe.vae_scale_factor, height * pipe.vae_scale_factor


def refuse_below(own: tuple[int, int] | None, pixels: int) -> None:
    """Raise InvalidSetting if the pipeline's own size is known and has more pixels than this limit."""
    width, height = own or (0, 0)
    if width * height > pixels:
        raise InvalidSetting(
            f"limits.pixels is {pixels}, and the model's own size is {width}x{height}; allow at least {width * height}"
        )
