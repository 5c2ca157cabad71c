from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from excise.errors import ExciseError
from excise.files import is_leftover, temporary_beside, write_atomic, write_folder, write_once


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "it", {"a": "old"})
    return tmp_path / "it"


def break_replace(monkeypatch: pytest.MonkeyPatch, error: BaseException, at: int) -> None:
    """Raise `error` in place of the rename number `at`, counted from 1; the later ones work again."""
    count, real = 0, Path.replace

    def replace(self: Path, target: Any) -> Path:
        nonlocal count
        count += 1
        if count == at:
            raise error
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)


def test_a_folder_is_replaced_whole(folder: Path) -> None:
    write_folder(folder, {"a": "new", "b": b"more"})
    assert sorted(p.name for p in folder.iterdir()) == ["a", "b"]
    assert (folder / "a").read_text() == "new"
    assert [p.name for p in folder.parent.iterdir()] == ["it"]


@pytest.mark.parametrize("at", [1, 2])
def test_ctrl_c_at_either_rename_leaves_the_old_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    break_replace(monkeypatch, KeyboardInterrupt(), at)
    with pytest.raises(KeyboardInterrupt):
        write_folder(folder, {"a": "new"})
    assert (folder / "a").read_text() == "old"
    assert [p.name for p in folder.parent.iterdir()] == ["it"]


def test_the_old_folder_survives_even_where_it_cannot_be_put_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.replace

    def only_away(self: Path, target: Any) -> Path:
        if Path(target) == folder:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", only_away)
    with pytest.raises(ExciseError, match="Input/output"):
        write_folder(folder, {"a": "new"})
    (kept,) = folder.parent.iterdir()
    assert (kept / "a").read_text() == "old"


def test_a_folder_without_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExciseError, match=r"cannot write \.: it has no name of its own"):
        write_folder(Path(), {"a": "1"})
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_left_alone(folder: Path) -> None:
    with pytest.raises(ExciseError, match=r"other files \(a\)"):
        write_folder(folder, {"b": "new"})
    assert [p.name for p in folder.iterdir()] == ["a"]


def test_a_file_in_the_way_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExciseError, match="is a file; name an empty or new folder"):
        write_folder(tmp_path / "file", {"a": "new"})
    with pytest.raises(ExciseError, match="cannot write"):
        write_atomic(tmp_path / "file" / "inside", "x")

    def stuck(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", stuck)
    break_replace(monkeypatch, OSError(errno.ENOSPC, "No space left on device"), 1)
    with pytest.raises(ExciseError, match="No space left"):
        write_atomic(tmp_path / "other", "x")


CONTAINER = """
import os, socket, sys
from pathlib import Path
os.getpid, socket.gethostname = lambda: 1, lambda: "trainer"
from excise.files import write_atomic, write_folder
target = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for n in range(150):
    write_atomic(target / "searched.json", f"{n}" * 1000)
    write_folder(target / "eraser", {"a": f"{n}", "b": f"{n}"})
"""


def test_containers_that_all_call_themselves_pid_1_lose_no_write(tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([sys.executable, "-c", CONTAINER, str(tmp_path)], **pipes) for _ in range(3)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    errors = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0], errors
    assert (tmp_path / "searched.json").read_text() == "149" * 1000
    assert (tmp_path / "eraser" / "a").read_text() == (tmp_path / "eraser" / "b").read_text() == "149"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eraser", "searched.json"]


@pytest.mark.parametrize("write", [write_atomic, lambda path, text: write_folder(path, {"a": text})])
def test_threads_of_one_process_lose_no_write(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda n: write(tmp_path / "it", str(n)), range(400)))
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_leftovers_of_a_dead_writer_are_ignored(folder: Path) -> None:
    left = temporary_beside(folder / "a")
    left.write_text("half")
    assert is_leftover(left.name)
    assert not is_leftover("a") and not is_leftover(".a.tmp")
    write_folder(folder, {"a": "new"})
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_a_temporary_name_fits_wherever_its_target_does(tmp_path: Path) -> None:
    for name in ("n" * 255, "ü" * 127):
        write_atomic(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"


@pytest.mark.parametrize("linked", [True, False])
def test_of_several_writers_the_first_ones_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool) -> None:
    if not linked:

        def refuse(*given: Any) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr("os.link", refuse)
    write_once(tmp_path / "it", "first")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: write_once(tmp_path / "it", str(n)), range(50)))
    assert (tmp_path / "it").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
