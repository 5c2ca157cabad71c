"""Locks on tokenizers, and copies without a lock. Every call changes a fast tokenizer's settings, and threads share
it."""

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
"""Methods that set padding and truncation and then encode: the first in transformers 5, the second in 4."""
_LOCK = threading.Lock()
_locks: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_holders: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def lock(tokenizer: Any) -> Callable[[], None]:
    """Let only one thread at a time encode with `tokenizer`. Return a function that ends this.

    Otherwise, after a call has set a fast tokenizer's padding and truncation, another thread's call may change them
    before the first one encodes, so that its prompts get the other's length.
    """
    with _LOCK:
        _holders[tokenizer] = _holders.get(tokenizer, 0) + 1
        if _holders[tokenizer] == 1:
            for name in _METHODS:
                if callable(getattr(type(tokenizer), name, None)) and name not in vars(tokenizer):
                    # A bound method, so that a deep copy or pickle of the tokenizer has its own.
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
    """Keep other threads from encoding with a locked `tokenizer`."""
    with _LOCK:
        held = _locks.setdefault(tokenizer, threading.RLock())
    with held:
        yield


def own_copy(tokenizer: Any) -> Any:
    """Return a copy with its own settings and vocabulary and without the lock, while other threads may be encoding."""
    with alone(tokenizer):
        if (fast := getattr(tokenizer, "_tokenizer", None)) is None:
            return copy.deepcopy(tokenizer)
        # Shallow, except for the part that a call changes: a deep copy takes many times as long.
        copied = copy.copy(tokenizer)
        _unlock(copied)
        copied._tokenizer = _copied(fast)
        return copied


def _copied(fast: Any) -> Any:
    """Return a copy of the `tokenizers.Tokenizer` with its own settings and added words.

    It shares the model, with the vocabulary, which neither encoding nor an added word changes. A deep copy parses it
    all again and takes hundreds of times as long; it is made only if the other does not come out equal.
    """
    try:
        made = type(fast)(fast.model)
        for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "encode_special_tokens"):
            if (part := getattr(fast, name)) is not None:
                setattr(made, name, part)
        words = fast.get_added_tokens_decoder()
        for _, word in sorted(words.items()):
            (made.add_special_tokens if word.special else made.add_tokens)([word])
        if made.get_added_tokens_decoder() == words:
            if fast.truncation is not None:
                made.enable_truncation(**fast.truncation)
            if fast.padding is not None:
                made.enable_padding(**fast.padding)
            return made
    except (AttributeError, TypeError):  # another version of tokenizers
        pass
    return copy.deepcopy(fast)


def _after_fork() -> None:
    """Create new locks in a forked process, where those held by other threads would never be released."""
    global _LOCK
    _LOCK = threading.Lock()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _unlock(tokenizer: Any) -> None:
    """Remove the locked methods. A shallow copy has those bound to the original."""
    for name in _METHODS:
        if getattr(vars(tokenizer).get(name), "__func__", None) is _LOCKED[name]:
            delattr(tokenizer, name)


def _locked(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with alone(self):
            return getattr(type(self), name)(self, *args, **kwargs)

    # It is pickled by name, and unpickled as the class's own method.
    method.__name__ = name
    return method


_LOCKED = {name: _locked(name) for name in _METHODS}
