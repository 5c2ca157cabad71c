"""Commands and groups of `excise`: option parsing, and one line for every failure."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from excise.cli.terminal import complain
from excise.errors import ExciseError, ItemsFailed, WeakEraserError

Function = TypeVar("Function", bound=Callable[..., Any])
BAD_INPUT = 2
"""Exit code for an error that the caller can fix."""
NOT_PASSED = 3
"""Exit code for a red flag, an eraser that is too weak to be written, or a missed gate."""
FAILED = 4
"""Exit code if items of a long command failed: they raised an error, or their workers died."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, SIGTERM or SIGHUP: 128 plus the number of SIGINT, as in shells."""

_UsageError: Any = typer.BadParameter.__mro__[1]
"""Base class of the parser's errors. Typer does not export it, and newer versions no longer take it from click."""


@contextmanager
def one_line() -> Iterator[None]:
    """Turn errors into one line on standard error and an exit code.

    The codes are 2 for an error that the caller can fix, 3 for an eraser that is too weak, 4 for items that failed, and
    130 for Ctrl-C.
    """
    try:
        yield
    except WeakEraserError as error:
        complain(str(error))
        raise typer.Exit(NOT_PASSED) from error
    except ItemsFailed as error:
        complain(str(error))
        raise typer.Exit(FAILED) from error
    except ExciseError as error:
        complain(str(error))
        raise typer.Exit(BAD_INPUT) from error
    except _UsageError as error:
        # Raised for a group called without a command: its message is the help page.
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        context = getattr(error, "ctx", None)
        where = f"; see `{context.command_path} --help`" if context is not None else ""
        complain(f"{error.format_message().rstrip('. ')}{where}")
        raise typer.Exit(BAD_INPUT) from error
    except KeyboardInterrupt as stop:
        complain(
            "stopped; no half-written file is left, and long work resumes when you repeat the command", kind="note"
        )
        raise typer.Exit(INTERRUPTED) from stop
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{error.strerror or error}")
        raise typer.Exit(BAD_INPUT) from error


def refuse_repeated(command: Any, context: Any, args: list[str]) -> dict[str, Any]:
    """Return the values as typed, by parameter.

    Raises a usage error if an option that takes one value is given twice: the first would be dropped silently.
    """
    try:
        typed, _, order = command.make_parser(context).parse_args(args=list(args))
    except _UsageError as error:
        error.ctx = error.ctx or context  # some parser errors do not know their command
        raise
    given = Counter(id(param) for param in order)
    for param in order:
        if given[id(param)] > 1 and not param.multiple and not getattr(param, "count", False):
            raise _UsageError(f"{param.opts[0]} is given twice, but takes only one value", ctx=context)
    return dict(typed)


def refuse_empty(command: Any, context: Any, typed: dict[str, Any]) -> None:
    """Raise BadParameter for an empty path.

    A shell makes one of an unset variable, and Python takes it for the current folder.
    """
    for param in command.params:
        values = _several(context.params.get(param.name))
        if "" in _several(typed.get(param.name)) and any(isinstance(value, Path) for value in values):
            raise typer.BadParameter("the path is empty; name a file or a folder", ctx=context, param=param)


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def refuse_not_finite(command: Any, context: Any) -> None:
    """Raise BadParameter for nan and infinity, which pass any check of bounds."""
    for param in command.params:
        value = context.params.get(param.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise typer.BadParameter(f"{value} is not a finite number", ctx=context, param=param)


class Command(TyperCommand):
    """Command that takes single-valued options once, and finite numbers only."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        typed = refuse_repeated(self, ctx, args)
        rest: list[str] = super().parse_args(ctx, args)
        refuse_empty(self, ctx, typed)
        refuse_not_finite(self, ctx)
        return rest


class Group(TyperGroup):
    """Group of commands that reads its own options as a command does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        refuse_repeated(self, ctx, args)
        return super().parse_args(ctx, args)


class Root(Group):
    """Group of all commands. Every failure in it ends in one line."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with one_line():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with one_line():
            return super().invoke(ctx)


class Commands(typer.Typer):
    """Typer app whose commands and groups are those of this module."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"cls": Group, **options})

    def command(self, *args: Any, **options: Any) -> Callable[[Function], Function]:
        def add(function: Function) -> Function:
            text = {"help": unwrapped(function.__doc__ or "")}
            return super(Commands, self).command(*args, **{"cls": Command, **text, **options})(function)

        return add


def unwrapped(docstring: str) -> str:
    """Join the lines of each paragraph, so that help wraps at the terminal's width and not where the source does."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(docstring).split("\n\n"))
