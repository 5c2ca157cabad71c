"""Answers typed by the user: single keys at a terminal, otherwise lines with a number or a letter."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from excise.cli.terminal import note


class Answers(Protocol):
    """Source of the user's answers."""

    def choose(self, choices: Mapping[str, str]) -> str | None:
        """Return one of the keys of `choices`, whose values describe them. Returns None at the end of the input."""
        ...

    def text(self, title: str, now: str) -> str | None:
        """Return a line of text, or `now` if the line is empty. Returns None at the end of the input."""
        ...


@contextmanager
def typed_answers() -> Iterator[Answers]:
    """Read single keys if standard input is a terminal that supports them, otherwise lines."""
    try:
        import termios
        import tty
    except ImportError:  # Windows
        yield _Lines()
        return
    if not sys.stdin.isatty():
        yield _Lines()
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        # Set once for the session, and without discarding what was typed ahead of a question.
        tty.setcbreak(descriptor, termios.TCSADRAIN)
        yield _Keys(descriptor, before)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class _Lines:
    def choose(self, choices: Mapping[str, str]) -> str | None:
        numbers = {str(n): key for n, key in enumerate(choices, 1)}
        note("  ".join(f"{n} {what}" for n, what in enumerate(choices.values(), 1)))
        for line in iter(sys.stdin.readline, ""):
            typed = line.strip().lower()
            key: str = numbers.get(typed, typed)
            if key in choices:
                return key
            if typed:
                note(f"type a number from 1 to {len(choices)}, or one of {' '.join(choices)}")
        return None

    def text(self, title: str, now: str) -> str | None:
        note(f"{title}; press Enter to keep: {now}")
        line = sys.stdin.readline()
        return (line.strip() or now) if line else None


class _Keys:
    def __init__(self, descriptor: int, cooked: list[Any]) -> None:
        self._descriptor, self._cooked = descriptor, cooked

    def choose(self, choices: Mapping[str, str]) -> str | None:
        note("  ".join(f"{key} {what}" for key, what in choices.items()))
        while (typed := os.read(self._descriptor, 1)) not in (b"", b"\x04"):
            key = typed.decode("ascii", "replace").lower()
            if key in choices:
                return key
        return None

    def text(self, title: str, now: str) -> str | None:
        import termios

        note(f"{title}:")
        raw = termios.tcgetattr(self._descriptor)
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._cooked)
        try:
            with _prefilled(now):
                return input().strip() or now
        except EOFError:
            return None
        finally:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, raw)


@contextmanager
def _prefilled(text: str) -> Iterator[None]:
    """Prefill `input` with an editable text, if readline is available."""
    with suppress(ImportError):
        import readline

        readline.set_startup_hook(lambda: readline.insert_text(text))
    try:
        yield
    finally:
        with suppress(ImportError):
            import readline

            readline.set_startup_hook()
