"""Locks on tokenizers, and copies without one: every call changes a fast tokenizer's settings, and threads share it."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

_METHODS = "_encode_plus", "_batch_encode_plus"
"""What sets padding and truncation and then encodes: the first in transformers 5, the second in 4."""
_LOCK = threading.Lock()
_locks: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_holders: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def lock(tokenizer: Any) -> Callable[[], None]:
    """Let one thread at a time encode with `tokenizer`, until what comes back is called.

    Between setting a fast tokenizer's padding and truncation and encoding, another thread's call would set them for its
    own text, and prompts came out cut or filled to the other's length.
    """
    with _LOCK:
        _holders[tokenizer] = _holders.get(tokenizer, 0) + 1
        if _holders[tokenizer] == 1:
            for name in _METHODS:
                if callable(getattr(type(tokenizer), name, None)) and name not in vars(tokenizer):
                    # A bound method: a deep copy or a pickle of the tokenizer has one of its own.
                    setattr(tokenizer, name, MethodType(_LOCKED[name], tokenizer))
    once = [None]

    def release() -> None:
        with _LOCK:
            if not once:
                return
            once.clear()
            _holders[tokenizer] -= 1
            if _holders[tokenizer]:
                return
            _unlock(tokenizer)

    return release


@contextmanager
def alone(tokenizer: Any) -> Iterator[None]:
    """Within it no other thread encodes with a locked `tokenizer`."""
    with _LOCK:
        own = _locks.setdefault(tokenizer, threading.RLock())
    with own:
        yield


def own_copy(tokenizer: Any) -> Any:
    """A copy whose settings, vocabulary and lock are its own, whatever other threads encode with meanwhile."""
    with alone(tokenizer):
        if (fast := getattr(tokenizer, "_tokenizer", None)) is None:
            return copy.deepcopy(tokenizer)
        # Shallow but for what a call changes: a whole copy takes many times as long.
        own = copy.copy(tokenizer)
        _unlock(own)
        own._tokenizer = copy.deepcopy(fast)
        return own


def _after_fork() -> None:
    """Give a forked process locks of its own: what another thread held is never released there."""
    global _LOCK
    _LOCK = threading.Lock()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _unlock(tokenizer: Any) -> None:
    """Take a lock's methods away: a shallow copy has those that are bound to the original."""
    for name in _METHODS:
        if getattr(vars(tokenizer).get(name), "__func__", None) is _LOCKED[name]:
            delattr(tokenizer, name)


def _locked(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with alone(self):
            return getattr(type(self), name)(self, *args, **kwargs)

    # Pickled by name: unpickled it is the class's own.
    method.__name__ = name
    return method


_LOCKED = {name: _locked(name) for name in _METHODS}
