"""Errors that a user can act on: one tree, with ExciseError at its root.

    ExciseError
    ├── InvalidSetting     a setting, name, strength or option that is impossible
    ├── NotFound           a folder, repository, revision, concept, method, layer or neuron that is not there
    ├── WrongModel         an eraser or SAE on a pipeline it was not made for
    ├── Tampered           files that were altered, truncated, or not signed or pinned as required
    ├── MissingExtra       an optional package that is not installed
    ├── WeakEraserError    an eraser that misses a stated limit
    ├── ItemsFailed        items of a long command that failed and were set aside
    └── EraserDidNotFire   an attached eraser that changed nothing

Every message is one line: what is wrong, and what to do about it.
"""

from __future__ import annotations

import re
import reprlib
import sys


class ExciseError(Exception):
    """Base of all errors that Excise raises on purpose. The message is one line: what is wrong, and what to do.

    Messages quote untrusted files and servers. Whatever they quote, the line stays one, is safe to print, and is cut in
    its middle if it is long. The command line prints it and exits with code 2.
    """

    def __init__(self, message: str = "") -> None:
        line = one_line(message)
        if len(line) > LONGEST:
            line = f"{line[: LONGEST - _ENDING]} … {line[-_ENDING:]}"
        super().__init__(line)


LONGEST, _ENDING = 1000, 400
"""Characters of an error's message, about; and how many of them are its end, which says what to do."""


class InvalidSetting(ExciseError):
    """A setting, name, strength or option is unknown, of the wrong type, or out of bounds; nothing was changed."""


class NotFound(ExciseError):
    """A folder, hub repository, revision, concept, method, layer, neuron or loaded eraser is not there."""


class WrongModel(ExciseError):
    """An eraser or SAE does not belong to this pipeline, or this kind of pipeline cannot be edited."""


class Tampered(ExciseError):
    """Saved files were altered, truncated or damaged, lack the required signature, or are not the eraser pinned."""


class MissingExtra(ExciseError):
    """An optional package is not installed. The message gives the `pip install` line."""


class WeakEraserError(ExciseError):
    """The new eraser misses a stated limit and was not saved; the command line exits with code 3."""


class ItemsFailed(ExciseError):
    """Some items of a long command raised an error or cost their workers; the command line exits with code 4."""


class EraserDidNotFire(ExciseError):
    """An eraser is attached, but what the denoiser reads did not change. It refuses to generate."""


_UNSAFE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)
"""Characters that a terminal obeys or that reorder a line: C0 (except tab and line feed), C1, bidi controls; and
surrogates, which no stream can encode."""


def printable(text: str) -> str:
    """Return a text that is safe to print on a terminal: an untrusted file or server may have written it."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)


def json_printable(text: str) -> str:
    """Return JSON text of the same meaning that is safe to print on a terminal."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """Return a text as one line that is safe to print or log: no text can forge a line of its own."""
    return printable(" ".join(map(str.strip, text.splitlines())))


def shown(value: object) -> str:
    """Return an untrusted value for a message: a text in quotes and escaped, and anything long cut in its middle."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = 60


def stacklevel() -> int:
    """Return the `stacklevel` with which the caller's `warnings.warn` names the first line outside Excise."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "excise":
        level, frame = level + 1, frame.f_back
    return level


def reason(error: BaseException) -> str:
    """Return an error's message as one short line that is safe to print: it may quote an untrusted file."""
    message = str(error.strerror or error) if isinstance(error, OSError) else str(error)
    return "".join(c if c.isprintable() else " " for c in message[:200]).strip() or type(error).__name__
