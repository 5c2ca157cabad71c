"""Answers of the page's handlers: parts of HTML, and one line for a failure, with nothing rendered next to it."""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from excise.app.pages.rendering import templates
from excise.bench.pictures import png
from excise.drawn import Pixels
from excise.errors import EraserDidNotFire, ExciseError, Tampered, WrongModel

WIDTH = 384
"""Pixels that a small picture is enlarged to, at least, by a whole factor."""
Answer = Mapping[Any, Any]
"""Values by component."""
ON_MODEL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
"""Options of an event that uses the model: one at a time, of all visitors."""


def html(macro: str, *args: Any, **options: Any) -> str:
    """Return a part of the page, by the name of its macro in templates/studio.html. Text is escaped."""
    return str(getattr(templates().get_template("studio.html").module, macro)(*args, **options)).strip()


def enlarged(picture: Pixels) -> Pixels:
    """Return a picture `[height, width, 3]` at least `WIDTH` wide, every pixel repeated equally often."""
    factor = max(1, -(-WIDTH // picture.shape[1]))
    return np.repeat(np.repeat(picture, factor, 0), factor, 1)


def png_of(picture: Pixels) -> bytes:
    """Return a picture as PNG, at its own size: the page enlarges it."""
    return png(picture)


def offered(button: Any, file: Path) -> Any:
    """Return the update that shows a button to download the file, which stays until the studio closes."""
    import gradio as gr

    button.keep_in_cache.add(str(file))  # gradio deletes other files after `CACHE_SECONDS`
    return gr.update(value=str(file), visible=True)


def refusal(error: Exception) -> str:
    """Return the line that says why there is no picture."""
    refused = isinstance(error, (EraserDidNotFire, Tampered, WrongModel))
    return html("refusal", "Refused" if refused else "Not done", f"{str(error).rstrip('.')}.")


def guarded(handler: Callable[..., Any], notice: Any, cleared: Sequence[Any]) -> Callable[..., Any]:
    """Return a handler that never leaves an old result next to a failure.

    Args:
        handler: Returns, or yields, values by component.
        notice: The component that shows a failure, and is emptied by an answer.
        cleared: Components that a failure empties.

    An error that is not an `ExciseError` is a defect: the page names its kind, and standard error gets the lines of
    code, without the message, which may quote a prompt.
    """

    def failed(error: Exception) -> Answer:
        if isinstance(error, ExciseError):
            line = refusal(error)
        else:
            print("".join(traceback.format_tb(error.__traceback__)) + type(error).__name__, file=sys.stderr)
            line = html("refusal", "Not done", f"an error in Excise ({type(error).__name__}); see the terminal.")
        return {**dict.fromkeys(cleared), notice: line}

    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def flow(*values: Any) -> Iterator[Answer]:
            try:
                for answer in handler(*values):
                    yield {notice: "", **answer}
            except Exception as error:
                yield failed(error)

        return flow

    @functools.wraps(handler)
    def call(*values: Any) -> Answer:
        try:
            return {notice: "", **handler(*values)}
        except Exception as error:
            return failed(error)

    return call
