"""What is left in a picture from which the target is gone: another object, an empty scene, or nothing anybody knows.

"Gone" alone does not tell a clean scene from a heap of parts: a judge that knows 40 objects recognises the gun in
neither. So two things are asked beside it: whether either judge recognises an object that nobody asked for, and whether
the picture is one of the 64 empty scenes (8 backgrounds in 8 styles) up to a few pixels.
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
"""Of 255: how far a channel may be from the empty scene's before the pixel counts as covered."""
EMPTY = 0.005
"""Share of pixels that may be covered in an empty scene.

Frozen on the unerased model: each of its 64 empty scenes lies below it. So does none of 800 rendered scenes with one
object, and 0.5 % of the same scenes with the object wrecked past recognition.
"""


def remains(others: bool, covered: float) -> Remains:
    """What a picture without the target is, by whether a judge recognises another object, and how much is covered."""
    return "other" if others else "empty" if covered <= EMPTY else "unrecognisable"


def covered(picture: Pixels) -> float:
    """Share of the pixels of a picture `[64, 64, 3]` that differ from the empty scene which is most like it."""
    apart = np.abs(_scenes() - picture.astype(np.int16)).max(-1) > STEP
    return float(apart.mean((1, 2)).min())


@cache
def _scenes() -> np.ndarray[Any, np.dtype[np.int16]]:
    """Every background in every style, `[64, 64, 64, 3]`."""
    return np.stack([backdrop(ground, style) for ground in BACKGROUNDS for style in STYLES]).astype(np.int16)
