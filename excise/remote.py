"""Folders in object stores (`s3://`, `gs://`), read and written by pyarrow through a copy on this machine.

A store puts an object in place at once, and renames none. So a file is whole in the store, or not there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from excise.errors import ExciseError, InvalidSetting, MissingExtra, reason
from excise.files import TENSORS, is_leftover, read_file, write_atomic

SCHEMES = ("s3", "gs")
THREADS = 16
"""Files that are fetched at a time."""


class StoreFailed(ExciseError):
    """An object store cannot be reached, has no such bucket, or does not permit what was asked."""


def url_of(folder: Path | str) -> str | None:
    """Return the URL of a folder in an object store, or None for one on a disk.

    A path will do: pathlib has made one slash of the two.
    """
    text = folder.as_posix() if isinstance(folder, Path) else folder
    scheme, colon, rest = text.partition(":")
    if scheme not in SCHEMES or not colon or rest[:1] not in ("", "/"):
        return None
    return f"{scheme}://{rest.strip('/')}"


def check_local(out: Path, option: str = "--out") -> None:
    """Raise InvalidSetting for a URL: most commands write to a disk only."""
    if (url := url_of(out)) is not None:
        what = f"{option} {url}: only `excise bench` works in an object store; name a folder on a disk"
        raise InvalidSetting(what.strip())


@dataclass(frozen=True)
class Remote:
    """A folder in an object store, and its copy on this machine.

    Every process of a command works on the copy. Other machines have copies of their own.
    """

    url: str
    copy: Path

    @classmethod
    def at(cls, folder: Path | str) -> Remote | None:
        """Return a folder in an object store with an empty copy, which goes with this object; None for one on a disk.

        Raises MissingExtra without pyarrow, and InvalidSetting for an invalid URL.
        """
        url = url_of(folder)
        if url is None:
            return None
        _opened(url)
        remote = cls(url, Path(tempfile.mkdtemp(prefix="excise-")))
        weakref.finalize(remote, shutil.rmtree, remote.copy, ignore_errors=True)
        return remote

    def where(self, name: str = "") -> str:
        """Return the URL of a file of the folder, or of the folder itself."""
        base, mark, query = self.url.partition("?")
        return f"{base}/{name}" if name else base + mark + query

    def names(self) -> list[str]:
        """Return the names of all files in the store, with `/` between their parts."""
        return list(self._listed())

    def pull(self, *, exact: bool = False) -> None:
        """Fetch all files that the copy lacks, or that differ from it in size or time.

        With `exact`, files that the store lacks are removed from the copy. No other process may write to it then.
        """
        found = self._listed()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._take, found, found.values()))
        for path in self.copy.rglob("*") if exact else ():
            if path.is_file() and path.relative_to(self.copy).as_posix() not in found:
                path.unlink(missing_ok=True)

    def fetch(self, path: Path) -> bool:
        """Bring one file of the copy up to date, and return whether the store has it. One that it lacks is removed."""
        info = self._info(path)
        if info.is_file and self._take(self._name(path), info):
            return True
        path.unlink(missing_ok=True)
        return False

    def write(self, path: Path, data: bytes | str) -> None:
        """Write a file to the store, then to the copy: what the copy has, the store has too.

        Another thread writes to the store, so that Ctrl-C cannot end it between opening the file and filling it.
        """
        data = data.encode() if isinstance(data, str) else data

        def put() -> None:
            with self._reaching("write"), self._files.open_output_stream(self._key(path)) as stream:
                stream.write(data)

        with ThreadPoolExecutor(1) as pool:
            pool.submit(put).result()
        write_atomic(path, data)
        _stamp(path, self._info(path))

    def write_once(self, path: Path, data: bytes | str) -> None:
        """Write a file unless the store has it. Of two that write at the same moment, the last one's stays."""
        if not self.fetch(path):
            self.write(path, data)

    def push(self, folder: Path, last: str) -> None:
        """Write all files of a folder of the copy to the store, and `last` at the end: others read the folder after it.

        If the store has `last`, its files replace those of the copy instead.
        """
        if self._info(folder / last).is_file:
            self.pull()
            return
        for path in sorted(folder.iterdir(), key=lambda path: (path.name == last, path.name)):
            self.write(path, read_file(path, TENSORS))

    def remove(self, path: Path) -> None:
        """Remove a file from the store and the copy, if it is there."""
        with self._reaching("write"), suppress(FileNotFoundError):
            self._files.delete_file(self._key(path))
        path.unlink(missing_ok=True)

    @property
    def _files(self) -> Any:
        return _opened(self.url)[0]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.copy).as_posix()

    def _key(self, path: Path) -> str:
        return f"{_opened(self.url)[1]}/{self._name(path)}"

    def _info(self, path: Path) -> Any:
        """Return pyarrow's FileInfo of a file, in the store."""
        with self._reaching("read"):
            return self._files.get_file_info(self._key(path))

    def _listed(self) -> dict[str, Any]:
        """Return pyarrow's FileInfo of every file in the store by name."""
        root = _opened(self.url)[1]
        with self._reaching("read"):
            infos = self._files.get_file_info(_selector()(root, allow_not_found=True, recursive=True))
        found = {info.path.removeprefix(f"{root}/"): info for info in infos if info.is_file}
        for name in found:
            if {"", ".", ".."} & set(name.split("/")) or "\\" in name or "\0" in name:
                raise ExciseError(f"{self.url} holds {name!r}, which leads out of it; it is not to be trusted")
        return {name: info for name, info in found.items() if not is_leftover(PurePosixPath(name).name)}

    def _take(self, name: str, info: Any) -> bool:
        """Fetch a file unless the copy is the same. Return whether it is still there."""
        path = self.copy / name
        with suppress(FileNotFoundError):
            found = path.stat()
            if (found.st_size, int(found.st_mtime)) == (info.size, int(info.mtime.timestamp())):
                return True
        if info.size > TENSORS:
            raise ExciseError(f"{self.where(name)} has {info.size} bytes, more than the {TENSORS} allowed")
        try:
            with self._reaching("read"), self._files.open_input_file(info.path) as stream:
                data = stream.read()
        except FileNotFoundError:
            return False
        write_atomic(path, data)
        _stamp(path, info)
        return True

    @contextmanager
    def _reaching(self, doing: str) -> Iterator[None]:
        """Raise StoreFailed for pyarrow's errors. It has tried for some seconds then."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            why = reason(OSError(str(error).rpartition("AWS Error ")[2]))
            raise StoreFailed(
                f"cannot {doing} {self.url} ({why}); check the bucket, your credentials and the network, and repeat "
                "the command"
            ) from error


def _stamp(path: Path, info: Any) -> None:
    """Give a file of the copy the time that it has in the store, in whole seconds, by which `pull` compares."""
    if info.is_file:
        with suppress(FileNotFoundError):
            os.utime(path, (int(info.mtime.timestamp()),) * 2)


@cache
def _opened(url: str) -> tuple[Any, str]:
    """Return pyarrow's file system for a URL, and the folder's path in it. Raises as `Remote.at`."""
    if "@" in url.partition("?")[0]:
        raise InvalidSetting("a URL with credentials would be printed; set them in the environment instead")
    try:
        from pyarrow.fs import FileSystem
    except ImportError as error:
        raise MissingExtra(f"{url} needs pyarrow: pip install 'excise[parquet]'") from error
    try:
        files, root = FileSystem.from_uri(url)
    except (OSError, ValueError, NotImplementedError) as error:
        raise InvalidSetting(f"{url} cannot be used ({reason(error)}); write s3://BUCKET/FOLDER") from error
    if not root:
        raise InvalidSetting(f"{url} names no bucket; write s3://BUCKET/FOLDER")
    return files, root


def _selector() -> Callable[..., Any]:
    from pyarrow.fs import FileSelector

    selector: Callable[..., Any] = FileSelector
    return selector
