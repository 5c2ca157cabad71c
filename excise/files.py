"""Writing so that nothing on disk is ever lost or half written: temporary name, fsync, rename."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
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


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data` in one step. Raises ExciseError where the disk refuses (full, read-only, no folder)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(temporary, data)
        temporary.replace(path)
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
    where the disk refuses.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    if folder.exists() and not folder.is_dir():
        raise ExciseError(f"{folder} is a file; name an empty or new folder")
    try:
        if folder.exists() and (strangers := sorted({p.name for p in folder.iterdir()} - set(contents))):
            raise ExciseError(f"{folder} holds other files ({', '.join(strangers[:3])}); choose an empty or new folder")
        shutil.rmtree(temporary, ignore_errors=True)
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

    Raises OSError where the disk refuses.
    """
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        if folder.exists():
            folder.replace(old)
        finished.replace(folder)
    finally:
        with suppress(OSError):
            if old.exists() and not folder.exists():
                old.replace(folder)
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)


def _write(path: Path, data: bytes | str) -> None:
    with path.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
