"""Reading of untrusted files, and atomic writing (temporary name, fsync, rename), so that nothing is half written.

Files may come from strangers. Every reader of them opens them by `open_regular`, `read_file` or `read_json`.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from excise.errors import ExciseError

SMALL = 64 * 2**20
"""Size in bytes up to which descriptions (JSON), cards and signatures are read."""
TENSORS = 32 * 2**30
"""Size in bytes up to which files of tensors are read."""
STREAMED = 2**40
"""Size in bytes up to which files are read line by line."""
LINE = 16 * 2**20
"""Characters up to which a line is read."""


def open_regular(path: Path, limit: int = STREAMED, *, follow: bool = True) -> BufferedReader:
    """Open a regular file of at most `limit` bytes for reading, without ever waiting for a writer.

    Raises OSError for anything else: a FIFO or a device, which need not end, and a large file that is nearly all holes,
    which takes no space on the disk but all of it in memory; and for a link unless links are to `follow`.
    """
    ways = ("O_NONBLOCK", "O_BINARY") if follow else ("O_NONBLOCK", "O_BINARY", "O_NOFOLLOW")
    descriptor = os.open(path, os.O_RDONLY | sum(getattr(os, way, 0) for way in ways))
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if found.st_size > limit:
            raise OSError(errno.EFBIG, f"it has {found.st_size} bytes, more than the {limit} allowed", str(path))
        if found.st_size > SMALL and _is_sparse(descriptor, found.st_size):
            raise OSError(errno.EFBIG, f"it states {found.st_size} bytes, nearly all of them holes", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: Path, limit: int = SMALL, *, follow: bool = True) -> bytes:
    """Return the bytes of a regular file of at most `limit` bytes. Raises OSError as `open_regular`."""
    with open_regular(path, limit, follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1)
    if len(data) > size:  # one of /proc, which states no size, or one that is being written
        raise OSError(errno.EFBIG, "it holds more than its size says", str(path))
    return data


def read_tensors(path: Path, limit: int = TENSORS) -> bytes:
    """Return the bytes of a safetensors file. Raises OSError as `open_regular`.

    Of a large file the table is read first: one whose tensors do not fill it is refused before the rest is read.
    """
    with open_regular(path, limit) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= SMALL:
            return read_file(path, SMALL)
        length = int.from_bytes(file.read(8), "little")
        try:
            table: Any = parse_json(file.read(length)) if length <= SMALL else None
            table.pop("__metadata__", None)
            ends = [entry["data_offsets"][1] for entry in table.values()]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            ends = []
        if max(ends, default=0) != size - 8 - length:
            raise OSError(errno.EINVAL, "it is not as long as its table of tensors says", str(path))
    return read_file(path, limit)


def read_json(path: Path, limit: int = SMALL) -> Any:
    """Return the content of a JSON file. Raises OSError as `open_regular`, and ValueError as `parse_json`."""
    return parse_json(read_file(path, limit))


def read_text(path: Path, limit: int = SMALL) -> str:
    """Return the content of a text file in UTF-8. Raises OSError as `open_regular`, and ValueError if it is not."""
    return read_file(path, limit).decode("utf-8")


def parse_json(text: bytes | str, *, finite: bool = False) -> Any:
    """Parse JSON in UTF-8. Raises ValueError if it is not, is nested too deeply, or holds half a surrogate pair.

    With `finite`, NaN and infinity are refused too, which Python accepts, also as 1e400.
    """
    text = text if isinstance(text, str) else text.decode("utf-8")
    try:
        content = json.loads(text, parse_float=_finite, parse_constant=_finite) if finite else json.loads(text)
        if "\\u" in text:  # only an escape can give text that cannot be encoded again, in an error message for one
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a surrogate pair") from None
    return content


def _finite(text: str) -> float:
    if not math.isfinite(figure := float(text)):
        raise ValueError(f"it holds the figure {text[:20]}")
    return figure


def _is_sparse(descriptor: int, size: int) -> bool:
    """Return whether less than an eighth of a file is data, as far as the file system tells."""
    if not hasattr(os, "SEEK_HOLE"):
        return False
    data = end = 0
    with suppress(OSError):  # ENXIO: no data after `end`
        for _ in range(1000):
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            data += end - start
            if data >= size // 8:
                break
    os.lseek(descriptor, 0, os.SEEK_SET)
    return data < size // 8


def sha256(source: Path | bytes) -> str:
    """Return the hexadecimal digest of a file or of bytes."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    digest = hashlib.sha256()
    with open_regular(source) as file:
        while part := file.read(_READ):
            digest.update(part)
    return digest.hexdigest()


_READ = 1 << 20
"""Bytes of a file that are read at a time."""


def temporary_beside(path: Path, ending: str = "tmp") -> Path:
    """Return a hidden name in the folder of `path` that no other writer has, on any machine, container or thread.

    The random token makes it unique. The host's name and the process id only tell a person who left it behind;
    containers share both. It is shortened to fit where `path` does (255 bytes).
    """
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0])[:24]
    return path.with_name(f".{path.name[:_KEPT]}.{host}.{os.getpid()}.{secrets.token_hex(8)}.{ending}")


_KEPT = 40
"""Characters of a name that `temporary_beside` keeps."""


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


def begun(path: Path, about: Any) -> Any:
    """Write `about` as JSON to `path` unless that exists, and return what the file says.

    It describes work that may go on in its folder: of several simultaneous callers, the first one decides. Until then
    the folder may hold failures and what killed writers left. Raises ValueError if it holds something else or the file
    is damaged, OSError if it cannot be read, ExciseError if it cannot be written.
    """
    if not path.exists():
        others = {name for name in _names(path.parent) if name != "failures"}
        if others and not path.exists():  # else another caller has written it just now
            raise ValueError(f"{path.parent} holds {min(others)}")
        write_once(path, json.dumps(about, indent=1) + "\n")
    return read_json(path)


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
    """Write a whole folder atomically. A reader that uses `unmixed` gets the old files or the new ones.

    An existing `folder` is replaced only if it holds no other files than those named in `contents`. If writing fails or
    is interrupted, the old one is restored. What killed writers of this folder left is removed after an hour. Raises
    ExciseError if it holds other files, if the disk refuses, and for a folder without a name.
    """
    check_named(folder)
    temporary = temporary_beside(folder)
    try:
        _restore(folder)
        if strangers := sorted(_names(folder) - set(contents)):
            raise ExciseError(f"{folder} holds other files ({', '.join(strangers[:3])}); choose an empty or new folder")
        temporary.mkdir(parents=True)
        for name, data in contents.items():
            _write(temporary / name, data)
        put_folder(temporary, folder)
        _remove_abandoned(folder)
    except OSError as error:
        raise ExciseError(
            f"cannot write {folder}: {error.strerror or error}; free some space or choose another place"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_folder(finished: Path, folder: Path) -> None:
    """Rename a finished folder to `folder`; if this is interrupted, the old one is restored.

    Where the system can exchange two names (Linux, on most disks), there is always a folder of that name. Elsewhere
    there is none for a moment. Of several simultaneous writers, each one puts a whole folder in place and the last one
    stays. Raises OSError if the disk refuses.
    """
    if _exchange(finished, folder):
        _remove(finished)
        return
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
                    _remove(old)


def cell(value: Any) -> Any:
    """Return a value for a cell of a .csv: an apostrophe before a text that a spreadsheet would run as a formula.

    Numbers stay numbers, also as text.
    """
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    return value if _NUMBER.fullmatch(value) else f"'{value}"


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

_Read = TypeVar("_Read")


def unmixed(folder: Path, read: Callable[[], _Read]) -> _Read:
    """Return what `read` reads from a folder's files, all of them from before or all from after any `write_folder`.

    Reads again if the folder was replaced meanwhile, and raises what `read` raises if it was not.
    """
    for _ in range(_LOOKS):
        before = _identity(folder)
        try:
            found = read()
        except Exception:
            if _identity(folder) == before:
                raise
            continue
        if _identity(folder) == before:
            return found
    raise ExciseError(f"{folder} is replaced again and again while it is read; read it when its writers are done")


_LOOKS = 1000
_ABANDONED = 3600.0
"""Seconds after which a writer's temporary folder is taken for that of a killed writer."""


def _identity(folder: Path) -> tuple[int, ...] | None:
    """Return what differs between a folder and the one that replaces it, or None if there is no such folder.

    A new folder may get the number of a removed one, but not its time of change.
    """
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


@cache
def _renameat2() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # not Linux, or an old C library
        return None


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders at once. Returns False if one is missing, or the system or disk cannot."""
    function, current, exchange = _renameat2(), -100, 2
    return function is not None and function(current, os.fsencode(one), current, os.fsencode(other), exchange) == 0


def _leftovers(folder: Path, ending: str) -> list[Path]:
    """Return the names that `temporary_beside` made for this folder with one of its endings, the last changed last.

    None for a name that it shortens, as other folders would have the same.
    """
    name = folder.name
    if len(name) > _KEPT:
        return []
    made = re.compile(re.escape(f".{name}.") + rf"[A-Za-z0-9_-]*\.\d+\.[0-9a-f]{{16}}\.{ending}")
    found = []
    with suppress(OSError):
        for path in folder.parent.iterdir():
            if made.fullmatch(path.name):
                with suppress(OSError):
                    found.append((_changed(path), path))
    return [path for _, path in sorted(found)]


def _changed(path: Path) -> float:
    found = path.lstat()
    return max(found.st_ctime, found.st_mtime)


def _restore(folder: Path) -> None:
    """Put back the old folder if a writer was killed after it had moved that away (where names cannot be exchanged)."""
    if not folder.exists() and (olds := _leftovers(folder, "old")):
        with suppress(OSError):
            olds[-1].replace(folder)


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary folders that killed writers of `folder` left. Those of living ones are younger."""
    for path in (*_leftovers(folder, "tmp"), *_leftovers(folder, "old")):
        with suppress(OSError):
            if path.is_dir() and time.time() - _changed(path) > _ABANDONED:
                _remove(path)


def _remove(folder: Path) -> None:
    """Remove a folder, or a link to one, as far as the disk allows."""
    if folder.is_symlink():
        with suppress(OSError):
            folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


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
