"""Pictures as arrays and as PNG files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from excise.drawn import Pixels as Pixels


def png(picture: Pixels, text: Mapping[str, str] | None = None) -> bytes:
    """Encode a picture `[height, width, 3]` as PNG, with `text` chunks by keyword."""
    buffer, chunks = io.BytesIO(), PngInfo()
    for keyword, value in (text or {}).items():
        chunks.add_text(keyword, value)
    Image.fromarray(picture).save(buffer, "PNG", optimize=True, pnginfo=chunks)
    return buffer.getvalue()


def read(path: Path) -> Pixels:
    """Read a picture `[height, width, 3]` from a file."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


Pictures = np.ndarray[Any, np.dtype[np.uint8]]
