"""The errors a user can act on."""

from __future__ import annotations


class ExciseError(Exception):
    """Something the user can mend. The message is one line: what is wrong, and what to do about it.

    The command line prints it and exits with code 2.
    """


class WeakEraserError(ExciseError):
    """An eraser was made that misses a stated limit and was not saved; the command line exits with code 3."""


class EraserDidNotFire(ExciseError):
    """An eraser is attached, but what the denoiser reads did not change: refuse to go on rather than render."""
