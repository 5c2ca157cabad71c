"""Code and commands in README.md and docs/: code in fences, commands in fences and in sentences."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = [
    p for p in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))) if p.exists()
]
FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^(?:torchrun (?:[^\n]*\\\n)?[^\n]*-m )?excise (?:[^\n]*\\\n)*[^\n]*$", re.MULTILINE)
_SPAN = re.compile(r"`(excise [^`]*)`")


@dataclass(frozen=True)
class Command:
    """A command `excise ...` of a page, which torchrun may start."""

    page: str
    line: int
    words: tuple[str, ...]
    """Its words after `excise`."""
    fenced: bool
    """Whether it is in a fence; in a sentence it may be only a name such as `excise find`."""

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: excise {self.text}"


def blocks(kind: str) -> Iterator[tuple[str, str]]:
    """Yield a name and the text of each fenced block of a kind, such as `python`."""
    for page in PAGES:
        for n, match in enumerate(FENCE.finditer(page.read_text(encoding="utf-8"))):
            if match["kind"].strip() == kind:
                yield f"{page.name}-{n}", match["body"]


def commands() -> list[Command]:
    """Return all commands of all pages, in reading order."""
    return [command for page in PAGES for command in _of(page)]


def _of(page: Path) -> Iterator[Command]:
    text = page.read_text(encoding="utf-8")
    name = str(page.relative_to(ROOT))
    found: list[tuple[int, str, bool]] = []
    for match in FENCE.finditer(text):
        if match["kind"].strip() in ("", "sh", "bash"):
            begins = match.start("body")
            for line in _COMMAND.finditer(match["body"]):
                found.append((begins + line.start(), line[0].replace("\\\n", " "), True))
    prose = FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    for match in _SPAN.finditer(prose):
        found += [(match.start(), " ".join(part.split()), False) for part in match[1].split(";")]
    for at, line, fenced in sorted(found, key=lambda item: item[0]):
        words = shlex.split(line, comments=fenced)
        yield Command(name, text.count("\n", 0, at) + 1, tuple(words[words.index("excise") + 1 :]), fenced)


@functools.cache
def _root() -> Any:
    """Return the command line, which takes a moment to make."""
    import typer.main

    from excise.cli import app

    return typer.main.get_command(app)


def parses(command: Command) -> bool:
    """Return whether a command is complete and its options are of the right kind, without running it.

    Raises:
        AssertionError: It names a command or an option that does not exist.
    """
    parser = _root()
    if "COMMAND" in command.words:
        return False
    rest = [word.replace("$MODEL", "model") for word in command.words]
    while hasattr(parser, "commands"):
        if not rest or rest[0].startswith("-"):
            return bool(rest) or bool(parser.invoke_without_command)
        assert rest[0] in parser.commands, f"{command}: there is no command {rest[0]!r}"
        parser, rest = parser.commands[rest[0]], rest[1:]
    known = {name for param in parser.params for name in (*param.opts, *param.secondary_opts)} | {"--help", "-h"}
    unknown = [word for word in rest if word.startswith("--") and word not in known]
    assert not unknown, f"{command}: there is no option {unknown[0]}"
    if {"--help", "-h"} & set(rest):
        return True
    try:
        with parser.make_context("excise", rest):
            return True
    except Exception:
        if command.fenced:
            raise
        return False
