"""Output paths, checked before the work: existing output is replaced only with --force.

Trainings, runs, sweeps, databases and the demo resume in their own folder instead, and take no --force. `option` is the
command-line option that a message names; libraries pass none.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from excise.errors import ExciseError, MissingExtra
from excise.files import check_named, is_leftover
from excise.remote import check_local

PAIRS = (".csv", ".jsonl")
FIGURES = (".svg", ".png", ".pdf")
PICTURE = (".png",)
PAGES = (".html", ".htm")
EXPORTS = (".jsonl", ".csv", ".parquet")


def check_file(out: Path, endings: tuple[str, ...], *, force: bool = False, option: str = "--out") -> None:
    """Raise ExciseError unless `out` can be written: a known ending, a writable place, and no existing file."""
    if out.is_dir():
        raise ExciseError(f"{option} {out} is a folder; name a file, such as {out / ('name' + endings[0])}")
    if out.suffix.lower() not in endings:
        *others, last = endings
        known = f"{', '.join(others)} or {last}" if others else last
        raise ExciseError(f"{option} {out}: the name must end in {known}, such as {out.parent / ('name' + endings[0])}")
    if out.exists() and not force:
        raise ExciseError(f"{option} {out} is there already; choose another name, or replace it with --force")
    _check_place(out, option)


def check_absent(*files: Path, force: bool = False) -> None:
    """Raise ExciseError if one of the files exists, unless it may be replaced."""
    if not force and (existing := next((file for file in files if file.exists()), None)) is not None:
        raise ExciseError(f"{existing} is there already; replace it with --force")


def check_folder(out: Path, *, own: tuple[str, ...], force: bool = False, option: str = "--out") -> None:
    """Raise ExciseError unless `out` can be written: a writable place, not a file, and empty.

    With `force` it may hold files named in `own`, which are replaced.
    """
    check_named(out)
    check_resumed(out, option=option)
    found = sorted(path.name for path in out.iterdir() if not is_leftover(path.name)) if out.is_dir() else []
    if found and not force:
        raise ExciseError(f"{option} {out} is there already; choose another folder, or replace it with --force")
    if others := [name for name in found if name not in own]:
        raise ExciseError(f"{option} {out} holds other files ({', '.join(others[:3])}); choose another folder")


def check_resumed(out: Path, *, option: str = "--out") -> None:
    """Raise ExciseError unless work can begin or be resumed in the folder `out`."""
    if out.exists() and not out.is_dir():
        raise ExciseError(f"{option} {out} is a file; name a folder".strip())
    _check_place(out, option)


def check_resumed_file(out: Path, *, option: str = "--out") -> None:
    """Raise ExciseError unless work can begin or be resumed with the file `out`."""
    if out.is_dir():
        raise ExciseError(f"{option} {out} is a folder; name a file")
    _check_place(out, option)


def check_untrained(out: Path, *, option: str = "", parts: bool = False) -> None:
    """Raise ExciseError unless an SAE can be trained into the folder `out`: existing files are never replaced.

    With `parts` it may contain folders, one for each of several SAEs.
    """
    if not parts:
        check_named(out)
    check_resumed(out, option=option)
    if out.exists() and not all(parts and path.is_dir() for path in out.iterdir()):
        raise ExciseError(
            f"{option} {out} is there already and not an empty folder; choose another, or delete it and train".strip()
        )


def check_extra(module: str, extra: str, what: str) -> None:
    """Raise MissingExtra if `module`, a package that `what` needs, is missing; `extra` is Excise's extra with it."""
    if find_spec(module) is None:
        raise MissingExtra(f"{what} needs {module}, which is not installed: pip install 'excise[{extra}]'")


def check_figure(out: Path, *, force: bool = False, option: str = "--out") -> None:
    """Raise ExciseError unless a figure can be drawn and written."""
    check_file(out, FIGURES, force=force, option=option)
    check_extra("matplotlib", "plot", option)


def _check_place(out: Path, option: str) -> None:
    check_local(out, option)
    place = next(parent for parent in out.absolute().parents if parent.exists())
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise ExciseError(f"{option} {out}: {place} is not a writable folder; choose another place".strip())
