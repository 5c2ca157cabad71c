"""Ctrl-C in long work: checked between steps, so that none is left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Defer the first Ctrl-C: the yielded function returns whether it came, to be checked between steps.

    Within a step it would leave weights half updated. A second Ctrl-C raises KeyboardInterrupt at once.
    """
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    # Other threads can neither set handlers nor be interrupted.
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)


@contextmanager
def surviving(*numbers: signal.Signals) -> Iterator[None]:
    """Ignore these signals, which a server raises again after it has closed, so that what follows is done too."""
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
