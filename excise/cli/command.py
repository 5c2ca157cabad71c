"""Commands and groups of `excise`: how they read their options, and how every failure ends."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from excise.cli.terminal import complain
from excise.errors import ExciseError, WeakEraserError

Function = TypeVar("Function", bound=Callable[..., Any])
BAD_INPUT = 2
"""The exit code for what the caller can mend."""
NOT_PASSED = 3
"""The exit code for a red flag, an eraser that is too weak to be written, or a gate that is missed."""
INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 and the number of SIGINT, as shells have it."""

_UsageError: Any = typer.BadParameter.__mro__[1]
"""The base of the parser's own errors. Typer exports none, and newer versions have it in another place than click."""


@contextmanager
def one_line() -> Iterator[None]:
    """Turn errors into one line on standard error and an exit code: 2 for what the caller can mend, 3 for an eraser
    that is too weak, 130 for Ctrl-C."""
    try:
        yield
    except WeakEraserError as error:
        complain(str(error))
        raise typer.Exit(NOT_PASSED) from error
    except ExciseError as error:
        complain(str(error))
        raise typer.Exit(BAD_INPUT) from error
    except _UsageError as error:
        # Its message is the help itself, for a group that was called without a command.
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        context = getattr(error, "ctx", None)
        where = f"; see `{context.command_path} --help`" if context is not None else ""
        complain(f"{error.format_message().rstrip('. ')}{where}")
        raise typer.Exit(BAD_INPUT) from error
    except KeyboardInterrupt as stop:
        complain("stopped; nothing half written is left, and long work goes on when called again", kind="note")
        raise typer.Exit(INTERRUPTED) from stop
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{error.strerror or error}")
        raise typer.Exit(BAD_INPUT) from error


def refuse_repeated(command: Any, context: Any, args: list[str]) -> dict[str, Any]:
    """Raise a usage error where an option that takes one value is given twice: the first would be dropped silently.

    Returns the values as they were typed, by parameter.
    """
    try:
        typed, _, order = command.make_parser(context).parse_args(args=list(args))
    except _UsageError as error:
        error.ctx = error.ctx or context  # not all that the parser raises knows its command
        raise
    given = Counter(id(param) for param in order)
    for param in order:
        if given[id(param)] > 1 and not param.multiple and not getattr(param, "count", False):
            raise _UsageError(f"{param.opts[0]} is given twice, but takes one value", ctx=context)
    return dict(typed)


def refuse_empty(command: Any, context: Any, typed: dict[str, Any]) -> None:
    """Raise BadParameter for an empty path, which a shell makes of an unset variable and Python takes for this
    folder."""
    for param in command.params:
        values = _several(context.params.get(param.name))
        if "" in _several(typed.get(param.name)) and any(isinstance(value, Path) for value in values):
            raise typer.BadParameter("it is empty; name a file or a folder", ctx=context, param=param)


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def refuse_not_finite(command: Any, context: Any) -> None:
    """Raise BadParameter for nan and infinity: neither is below or above any bound."""
    for param in command.params:
        value = context.params.get(param.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise typer.BadParameter(f"{value} is not a number", ctx=context, param=param)


class Command(TyperCommand):
    """A command that takes an option of one value once, and finite numbers only."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        typed = refuse_repeated(self, ctx, args)
        rest: list[str] = super().parse_args(ctx, args)
        refuse_empty(self, ctx, typed)
        refuse_not_finite(self, ctx)
        return rest


class Group(TyperGroup):
    """A group of commands that reads its own options as a command does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        refuse_repeated(self, ctx, args)
        return super().parse_args(ctx, args)


class Root(Group):
    """The group of all commands: every failure in it ends in one line."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with one_line():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with one_line():
            return super().invoke(ctx)


class Commands(typer.Typer):
    """A Typer app whose commands and groups are those of this module."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"cls": Group, **options})

    def command(self, *args: Any, **options: Any) -> Callable[[Function], Function]:
        return super().command(*args, **{"cls": Command, **options})
