"""DeferringLock: a lock that is never held while a user's function runs."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from contextlib import suppress

_COLLECTING = threading.local()


def _note_collection(phase: str, info: object) -> None:
    with suppress(RuntimeError):  # the interpreter ends, and gevent's greenlets with it
        _COLLECTING.now = phase == "start"


gc.callbacks.append(_note_collection)


class DeferringLock:
    """A reentrant lock, as a context manager, which runs functions after its release."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._depth = 0
        self._deferred: list[Callable[[], object]] = []

    def __enter__(self) -> None:
        self._lock.acquire()
        self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        deferred: list[Callable[[], object]] = []
        if not self._depth:
            self._owner = None
            deferred, self._deferred = self._deferred, []
        self._lock.release()
        for function in deferred:
            function()

    def after(self, function: Callable[[], object]) -> None:
        """Call `function` when this thread has released the lock: now, if it does not hold it.

        During garbage collection the thread may hold any other lock. Then another thread calls it.
        """
        if getattr(_COLLECTING, "now", False):
            with suppress(RuntimeError):  # the interpreter ends
                threading._start_new_thread(function, ())  # type: ignore[attr-defined]
        elif self._owner == threading.get_ident():
            self._deferred.append(function)
        else:
            function()
