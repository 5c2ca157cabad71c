"""Ranks on the command line: how a training is divided among them, and which GPU each takes."""

from __future__ import annotations

import os

from excise.errors import InvalidSetting, shown
from excise.sae.parallel import processes

_AXES = ("data", "latents")


def parse(text: str) -> tuple[int, int]:
    """Return the numbers of ranks along data and latents from a text such as `data=2,latents=4`; 1 where one is absent.

    Raises InvalidSetting for anything else.
    """
    sizes = dict.fromkeys(_AXES, 1)
    given: list[str] = []
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if (
            name not in sizes
            or name in given
            or not (number.isascii() and number.isdigit() and 0 < int(number) < 2**31)
        ):
            raise InvalidSetting(
                f"cannot split a training by {shown(text)}; write it as data=2,latents=4, or one of both"
            )
        given.append(name)
        sizes[name] = int(number)
    return sizes["data"], sizes["latents"]


def local_device(device: str) -> str:
    """Return this rank's own GPU for `cuda`, by LOCAL_RANK, and any other device as it is."""
    number = os.environ.get("LOCAL_RANK", "")
    return f"cuda:{number}" if device == "cuda" and processes() > 1 and number.isdigit() else device
