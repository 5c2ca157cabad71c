"""Pictures as arrays and as PNG files."""

from __future__ import annotations

import io
import os
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


def read_png(path: Path) -> bytes:
    """Return a picture file's bytes. Raises OSError for a link: in a run from a stranger it may lead anywhere."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        return file.read()


def read(path: Path) -> Pixels:
    """Read a picture `[height, width, 3]` from a file that is not a link."""
    with Image.open(io.BytesIO(read_png(path))) as image:
        return np.asarray(image.convert("RGB"))


Pictures = np.ndarray[Any, np.dtype[np.uint8]]
