"""Atomic writing, so that nothing on disk is lost or half written: temporary name, fsync, rename."""

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
    """Return the hexadecimal digest of a file or of bytes."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file.read())
        )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def temporary_beside(path: Path, ending: str = "tmp") -> Path:
    """Return a hidden name in the folder of `path` that no other writer has, on any machine, container or thread.

    The random token makes it unique. The host's name and the process id only tell a person who left it behind;
    containers share both. It is shortened to fit where `path` does (255 bytes).
    """
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0])[:24]
    return path.with_name(f".{path.name[:40]}.{host}.{os.getpid()}.{secrets.token_hex(8)}.{ending}")


def check_named(folder: Path) -> None:
    """Raise ExciseError for `.`: folders are replaced by renaming, which would remove the one that others work in."""
    if not folder.name:
        raise ExciseError(f"cannot write {folder}: it has no name of its own; name a folder, such as {folder / 'name'}")


def is_leftover(name: str) -> bool:
    """Return whether a file's name was made by `temporary_beside`: its writer died before removing it."""
    return _LEFTOVER.fullmatch(name) is not None


_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{16}\.tmp", re.DOTALL)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data` atomically. Raises ExciseError if the disk refuses (full, read-only, no folder)."""
    _put(path, data, lambda temporary: temporary.replace(path))


def write_once(path: Path, data: bytes | str) -> None:
    """Write `data` atomically unless `path` exists: of several simultaneous writers, the first one wins.

    Raises ExciseError as `write_atomic`.
    """

    def put(temporary: Path) -> None:
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a disk without hard links, which cannot arbitrate between two writers at the same moment
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
        # Failing to remove the temporary file must not hide why nothing was written.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_folder(folder: Path, contents: Mapping[str, bytes | str]) -> None:
    """Write a whole folder atomically: a reader sees the old one or the new one, never a mixture.

    An existing `folder` is replaced only if it holds no other files than those named in `contents`. If writing fails or
    is interrupted, the old one is restored. Raises ExciseError if it holds other files, if the disk refuses, and for a
    folder without a name.
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
    """Rename a finished folder to `folder`; if this is interrupted, the old one is restored.

    Of several simultaneous writers, each one puts a whole folder in place and the last one stays. Raises OSError if the
    disk refuses.
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
                # Another writer was quicker between the two renames: replace its folder by this one.
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
