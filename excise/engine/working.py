"""What a worker does: it opens a stage, makes items, and turns errors into answers."""

from __future__ import annotations

import errno
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from excise.engine.stage import Answer, Stage
from excise.errors import ExciseError, one_line
from excise.remote import StoreFailed


class NotWritten(Exception):
    """An item ended without an error and without its file."""


class Checked:
    """An open stage. It makes items, and raises NotWritten if an item's file is not there then.

    It looks where the item was made: on a network disk, other machines may see the file seconds later.
    """

    def __init__(self, stage: Stage[Any]) -> None:
        self._stage, self._make = stage, stage.open()

    def __call__(self, item: Any) -> object:
        returned = self._make(item)
        if not (path := self._stage.path(item)).exists():
            raise NotWritten(f"it ended without an error, but did not write {path}")
        return returned

    def close(self) -> None:
        """End the stage, if it has an end."""
        if (close := getattr(self._make, "close", None)) is not None:
            close()


def attempt(make: Callable[[Any], object], item: Any) -> Answer:
    """Make one item. An exception becomes an answer; Ctrl-C and SystemExit pass through."""
    began = time.perf_counter()
    try:
        returned = make(item)
    except Exception as error:
        return failed(error, "raised", time.perf_counter() - began)
    why = one_line(returned) if isinstance(returned, str) else ""
    return Answer("made", time.perf_counter() - began, why=why)


def failed(error: BaseException, kind: Any, seconds: float = 0.0) -> Answer:
    """Return the answer for an exception: its class, one line, and its traceback."""
    name, message = type(error).__name__, one_line(str(error))
    expected = isinstance(error, ExciseError)
    why = message if expected else one_line(f"failed with {name}: {message}")
    trace = "".join(traceback.format_exception(error))
    return Answer(kind, seconds, name, why, trace, expected, is_of_the_disk(error))


def is_of_the_disk(error: BaseException) -> bool:
    """Return whether the disk (full, read-only) or an object store caused the error, so that all items would fail."""
    causes = (error, error.__cause__, error.__context__)
    full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
    return isinstance(error, StoreFailed) or any(isinstance(cause, OSError) and cause.errno in full for cause in causes)


def opened(pickled: bytes, threads: int, share: int) -> Callable[[Any], object]:
    """Unpickle and open a stage in a worker process, with `threads` for torch, or with 1/`share` of its cores if 0.

    The environment is set before the stage is unpickled, because that may import torch.
    """
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    elif share > 1:
        os.environ["OMP_NUM_THREADS"] = str(max(1, _cores() // share))
    stage = pickle.loads(pickled)
    if "torch" in sys.modules and (threads or share > 1):  # a script that imports torch has it before this function
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return Checked(stage)


def _cores() -> int:
    """Return how many threads torch would use: OMP_NUM_THREADS, or the cores that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
