"""Locks between processes, which the system takes away from one that dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from excise.errors import ExciseError


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock the file `path`, which is created, for this block. Yields False at once if another process has it locked.

    Yields True too where the system or the disk has no locks (Windows, some network disks). Raises ExciseError if the
    file cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ExciseError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    try:
        yield _locked(file)
    finally:
        os.close(file)


def _locked(file: int) -> bool:
    if find_spec("fcntl") is None:
        return True
    fcntl: Any = import_module("fcntl")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
