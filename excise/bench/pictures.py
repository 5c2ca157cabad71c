"""Pictures as arrays and as PNG files."""

from __future__ import annotations

import errno
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from excise.drawn import Pixels as Pixels
from excise.errors import reason
from excise.files import read_file


def png(picture: Pixels, text: Mapping[str, str] | None = None) -> bytes:
    """Encode a picture `[height, width, 3]` as PNG, with `text` chunks by keyword."""
    buffer, chunks = io.BytesIO(), PngInfo()
    for keyword, value in (text or {}).items():
        chunks.add_text(keyword, value)
    Image.fromarray(picture).save(buffer, "PNG", optimize=True, pnginfo=chunks)
    return buffer.getvalue()


def read_png(path: Path) -> bytes:
    """Return a picture file's bytes.

    Raises OSError as `read_file`, and for a link: in a run from a stranger it may lead anywhere.
    """
    return read_file(path, follow=False)


def read(path: Path) -> Pixels:
    """Read a picture `[height, width, 3]` from a file that is not a link."""
    return from_png(read_png(path), str(path))


def from_png(data: bytes, name: str = "") -> Pixels:
    """Decode a picture `[height, width, 3]`. Raises OSError, with the file's name, for anything else."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise OSError(errno.EINVAL, f"it is not a picture ({reason(error)})", name) from error


Pictures = np.ndarray[Any, np.dtype[np.uint8]]
