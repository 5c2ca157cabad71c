"""Pictures as arrays and as PNG files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from excise.drawn import Pixels as Pixels


def png(picture: Pixels) -> bytes:
    """One picture `[height, width, 3]` as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def read(path: Path) -> Pixels:
    """The picture of a file, `[height, width, 3]`."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
