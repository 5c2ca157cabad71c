"""Ranks on the command line: how they divide a training."""

from __future__ import annotations

from excise.engine import is_on_ray
from excise.errors import ExciseError, InvalidSetting, shown
from excise.launched import processes
from excise.sae.parallel import ALONE, Mesh

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


def on_ray(parallel: str | None, engine: str | None) -> bool:
    """Return whether Ray is to start the ranks: `--parallel` on the engine ray, in a process that was started alone."""
    return parallel is not None and is_on_ray(engine) and processes() == 1


def join(parallel: str | None, engine: str | None = None) -> Mesh:
    """Return this process's mesh from the text of `--parallel`; if Ray starts the ranks, one that is not joined.

    Raises:
        ExciseError: The text is invalid, or other processes were started than it says.
    """
    if parallel is not None:
        if on_ray(parallel, engine):
            return Mesh(*parse(parallel))
        return Mesh.join(*parse(parallel))
    if (number := processes()) > 1:
        raise ExciseError(
            f"this is one of {number} processes, which would all train the same; say how they divide the training: "
            f"--parallel data={number}"
        )
    return ALONE
