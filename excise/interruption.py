"""Ctrl-C and SIGTERM in long work: checked between steps, so that none is left half done."""

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


def as_ctrl_c(*, once: bool = False) -> None:
    """Treat SIGTERM and SIGHUP as Ctrl-C from now on, so that work is ended and its workers with it.

    A shell starts what a script puts in the background with Ctrl-C ignored; these signals end it all the same. A signal
    that is ignored now, such as SIGHUP by nohup, stays so. With `once`, which is for workers, it does not, and all but
    the first of these signals are ignored.
    """
    came = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came and once:
            return
        came = True
        if not callable(signal.getsignal(signal.SIGINT)):
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and (once or signal.getsignal(number) is signal.SIG_DFL):
            signal.signal(number, pass_on)


@contextmanager
def surviving(*numbers: signal.Signals) -> Iterator[set[int]]:
    """Ignore these signals, and yield the set of those that came.

    A server raises them again after it has closed. So what follows is done too.
    """
    came: set[int] = set()
    before = [signal.signal(number, lambda which, _: came.add(which)) for number in numbers]
    try:
        yield came
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
