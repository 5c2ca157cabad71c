"""Bound: base of the parts of an attached eraser, which cannot be copied."""

from __future__ import annotations

from typing import Any, NoReturn

from excise.errors import ExciseError


class Bound:
    """Part of an attached eraser, which belongs to one pipeline: copying or pickling it raises ExciseError."""

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ExciseError(
            "a pipeline with an eraser attached cannot be copied or pickled; unload it first (excise.unload_eraser)"
        )
