"""Erasers that are named on the command line: folders, or repositories on the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from excise.cli.terminal import note

_WHAT = "Folder of one eraser or of several, or OWNER/NAME[@REVISION] on the hub"
EraserSource = Annotated[Path, typer.Argument(help=f"{_WHAT}.", metavar="DIR")]
EraserSourceArguments = Annotated[list[Path], typer.Argument(help=f"{_WHAT}. Repeatable.", metavar="DIR...")]
EraserSources = Annotated[list[Path] | None, typer.Option("--eraser", help=f"{_WHAT}. Repeatable.")]


def at_hand(source: Path) -> Path:
    """Return the folder of an eraser, downloaded first if `source` is not a folder but a repository on the hub.

    Raises NotFound if it cannot be downloaded.
    """
    repository = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@(.+))?", source.as_posix())
    if source.exists() or repository is None:
        return source
    from excise.erasers.artefact.files import FILES, SIGNATURE
    from excise.hub import fetch

    name, revision = repository.groups()
    found = fetch(name, (*FILES, SIGNATURE), "eraser", revision=revision)
    if found.commit is not None and found.commit != revision:
        note(f"{source} is at commit {found.commit}; {name}@{found.commit} pins it")
    return found.folder
