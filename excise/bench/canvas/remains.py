"""What a picture shows once the target is gone: another object, an empty scene, or nothing recognisable.

"Gone" alone does not distinguish a clean scene from a heap of parts: a judge that knows 40 objects recognises the gun
in neither. So two more checks are made: whether either judge recognises an object that the prompt does not ask for, and
whether the picture is one of the 64 empty scenes (8 backgrounds in 8 styles) up to a few pixels.

What was outside the object should stay as it was: `unchanged_outside` counts its pixels.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np

from excise.drawn import Pixels
from excise.reference.scenes import backdrop
from excise.reference.world import BACKGROUNDS, STYLES

Remains = Literal["other", "empty", "unrecognisable"]
STEP = 32
"""Largest difference of a channel, of 255, from the empty scene's before the pixel counts as covered, and from the
unerased picture's before it counts as changed."""
EMPTY = 0.005
"""Largest share of covered pixels in an empty scene.

Fixed on the unerased model, whose 64 empty scenes all lie below it. None of 800 rendered scenes with one object does,
and 0.5 % of the same scenes with the object wrecked beyond recognition.
"""


def remains(others: bool, covered: float) -> Remains:
    """Classify a picture without the target, by whether a judge recognises another object and the share covered."""
    return "other" if others else "empty" if covered <= EMPTY else "unrecognisable"


def covered(picture: Pixels) -> float:
    """Return the share of pixels in a picture `[64, 64, 3]` that differ from the most similar empty scene."""
    apart = np.abs(_scenes() - picture.astype(np.int16)).max(-1) > STEP
    return float(apart.mean((1, 2)).min())


def unchanged_outside(picture: Pixels, unerased: Pixels, empty: Pixels) -> float | None:
    """Return the share of pixels outside the unerased picture's objects whose channels differ by at most `STEP`.

    Args:
        picture: The erased picture `[height, width, 3]`.
        unerased: The unerased one from the same seed, whose objects are found by `objects_mask`.
        empty: The background that it should have, without objects.

    Returns:
        The share, 0 to 1, or None if the objects cover the whole picture.
    """
    free = ~objects_mask(unerased, empty)
    apart = np.abs(picture.astype(np.int16) - unerased).max(-1)
    return float((apart[free] <= STEP).mean()) if free.any() else None


def objects_mask(picture: Pixels, empty: Pixels) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return a mask `[height, width]` of where a picture differs from its empty background, widened by 4 pixels."""
    differs = (np.abs(picture.astype(int) - empty).max(-1) > 48).astype(np.uint8)
    padded = np.pad(differs, 4)
    height, width = differs.shape
    shifted = [padded[y : y + height, x : x + width] for y in range(9) for x in range(9)]
    return np.asarray(np.max(shifted, axis=0).astype(bool))


@cache
def _scenes() -> np.ndarray[Any, np.dtype[np.int16]]:
    """Return every background in every style, `[64, 64, 64, 3]`."""
    return np.stack([backdrop(ground, style) for ground in BACKGROUNDS for style in STYLES]).astype(np.int16)
