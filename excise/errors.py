"""Errors that a user can act on: one tree, with ExciseError at its root.

    ExciseError
    ├── InvalidSetting     a setting, name, strength or option that is impossible
    ├── NotFound           a folder, repository, revision, concept, method, layer or neuron that is not there
    ├── WrongModel         an eraser or SAE on a pipeline it was not made for
    ├── Tampered           files that were altered, truncated, or not signed or pinned as required
    ├── MissingExtra       an optional package that is not installed
    ├── WeakEraserError    an eraser that misses a stated limit
    └── EraserDidNotFire   an attached eraser that changed nothing

Every message is one line: what is wrong, and what to do about it.
"""

from __future__ import annotations


class ExciseError(Exception):
    """Base of all errors that Excise raises on purpose. The message is one line: what is wrong, and what to do.

    The command line prints it and exits with code 2.
    """


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


class EraserDidNotFire(ExciseError):
    """An eraser is attached, but what the denoiser reads did not change. It refuses to generate."""


def reason(error: BaseException) -> str:
    """Return an error's message as one short line that is safe to print: it may quote an untrusted file."""
    message = str(error.strerror or error) if isinstance(error, OSError) else str(error)
    return "".join(c if c.isprintable() else " " for c in message[:200]).strip() or type(error).__name__
