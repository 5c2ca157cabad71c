"""Questions to language models: backends, a cache of replies, and many questions at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from excise.chat.asking import Cost, Outcome, ask_all
from excise.chat.backend import Backend, Failure, Question, Reply, Unavailable
from excise.chat.cache import Cache
from excise.errors import ExciseError

KINDS = ("openai", "transformers")
"""Names of the backends."""


def backend(kind: str, **options: Any) -> Backend:
    """Create a backend by name, with the options of `OpenAIBackend` or `TransformersBackend.load`.

    Raises ExciseError for an unknown name or option, and for the reasons that they do.
    """
    make: Callable[..., Backend]
    if kind == "openai":
        from excise.chat.openai import OpenAIBackend as make
    elif kind == "transformers":
        from excise.chat.local import TransformersBackend

        make = TransformersBackend.load
    else:
        raise ExciseError(f"unknown backend {kind!r}; choose {' or '.join(KINDS)}")
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        known = ", ".join(inspect.signature(make).parameters)
        raise ExciseError(f"wrong options for the backend {kind!r}: {error}; its options are {known}") from None
    return make(**options)


__all__ = [
    "KINDS",
    "Backend",
    "Cache",
    "Cost",
    "Failure",
    "Outcome",
    "Question",
    "Reply",
    "Unavailable",
    "ask_all",
    "backend",
]
