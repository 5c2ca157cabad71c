"""Writing so that nothing on disk is ever lost or half written: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from excise.errors import ExciseError


def sha256(source: Path | bytes) -> str:
    """Hexadecimal digest of a file or of bytes."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file.read())
        )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def temporary_beside(path: Path, ending: str = "tmp") -> Path:
    """A hidden name in the folder of `path` that no other writer has, on any machine, in any container or thread.

    The random token makes it unique. The host's name and the process's number only tell a person who left it behind;
    containers share both. Cut, so that it fits where `path` does (255 bytes).
    """
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0])[:24]
    return path.with_name(f".{path.name[:40]}.{host}.{os.getpid()}.{secrets.token_hex(8)}.{ending}")


def check_named(folder: Path) -> None:
    """Raise ExciseError for `.`, which is put in place by renaming as every folder is: whoever is in it would be left
    without one."""
    if not folder.name:
        raise ExciseError(f"cannot write {folder}: it has no name of its own; name a folder, such as {folder / 'name'}")


def is_leftover(name: str) -> bool:
    """Whether a file's name is one that `temporary_beside` made: a writer died before it could clear it away."""
    return _LEFTOVER.fullmatch(name) is not None


_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{16}\.tmp", re.DOTALL)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data` in one step. Raises ExciseError where the disk refuses (full, read-only, no folder)."""
    _put(path, data, lambda temporary: temporary.replace(path))


def write_once(path: Path, data: bytes | str) -> None:
    """Write `data` in one step unless `path` is there: of several writers at once the first one's stays.

    Raises ExciseError as `write_atomic`.
    """

    def put(temporary: Path) -> None:
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a disk without hard links, where two writers at the same moment cannot be told apart
            if not path.exists():
                temporary.replace(path)

    _put(path, data, put)


def _put(path: Path, data: bytes | str, put: Callable[[Path], object]) -> None:
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(temporary, data)
        put(temporary)
    except OSError as error:
        raise ExciseError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another place"
        ) from error
    finally:
        # What cannot be cleared away must not hide why nothing was written.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_folder(folder: Path, contents: Mapping[str, bytes | str]) -> None:
    """Put a whole folder in place at once: a reader sees the old one or the new one, never a mixture.

    An existing `folder` is replaced only if it holds no other files than those named in `contents`.
    Whatever ends the writing, Ctrl-C included, the old one is put back. Raises ExciseError where it holds others, or
    where the disk refuses, and for a folder without a name.
    """
    check_named(folder)
    temporary = temporary_beside(folder)
    try:
        if strangers := sorted(_names(folder) - set(contents)):
            raise ExciseError(f"{folder} holds other files ({', '.join(strangers[:3])}); choose an empty or new folder")
        temporary.mkdir(parents=True)
        for name, data in contents.items():
            _write(temporary / name, data)
        put_folder(temporary, folder)
    except OSError as error:
        raise ExciseError(
            f"cannot write {folder}: {error.strerror or error}; free some space or choose another place"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_folder(finished: Path, folder: Path) -> None:
    """Rename a finished folder into the place of `folder`; whatever ends this half-way, the old one is put back.

    Of several writers at once, each puts a whole folder in place and the last one stays. Raises OSError where the disk
    refuses.
    """
    olds: list[Path] = []
    done = False
    try:
        while True:
            olds.append(temporary_beside(folder, "old"))
            with suppress(FileNotFoundError):
                folder.replace(olds[-1])
            try:
                finished.replace(folder)
                done = True
                break
            except OSError as error:
                # Another writer was quicker between the two renames: its folder makes way for this one.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    finally:
        with suppress(OSError):
            if not (done or folder.exists()) and (kept := [old for old in olds if old.exists()]):
                kept[-1].replace(folder)
            if done or folder.exists():
                for old in olds:
                    shutil.rmtree(old, ignore_errors=True)


def _names(folder: Path) -> set[str]:
    try:
        return {name for name in os.listdir(folder) if not is_leftover(name)}
    except FileNotFoundError:
        return set()
    except NotADirectoryError:
        raise ExciseError(f"{folder} is a file; name an empty or new folder") from None


def _write(path: Path, data: bytes | str) -> None:
    with path.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
