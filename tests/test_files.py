from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from excise import files
from excise.errors import ExciseError
from excise.files import is_leftover, temporary_beside, unmixed, write_atomic, write_folder, write_once


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


def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away renameat2, as on other systems and some disks."""
    monkeypatch.setattr("excise.files._renameat2", lambda: None)


@pytest.mark.parametrize("at", [1, 2])
def test_ctrl_c_at_either_rename_leaves_the_old_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    no_exchange(monkeypatch)
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

    no_exchange(monkeypatch)
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


WRITER = """
import sys
from pathlib import Path
from excise.files import write_folder
n = int(sys.argv[2])
while True:
    n += 1
    write_folder(Path(sys.argv[1]), {name: f"{n}" * 2000 for name in "abc"})
"""


def written(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in "abc"]


exchanging = pytest.mark.skipif(files._renameat2() is None, reason="names cannot be exchanged on this system")


@exchanging
def test_a_reader_next_to_a_writer_sees_the_old_files_or_the_new_ones(tmp_path: Path) -> None:
    folder = tmp_path / "it"
    write_folder(folder, dict.fromkeys("abc", "0" * 2000))
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), "0"])
    missing, seen = 0, set()
    try:
        until = time.monotonic() + 60
        looks = 0
        while looks < 4000 or (len(seen) < 20 and time.monotonic() < until):
            looks += 1
            missing += not folder.is_dir()
            a, b, c = unmixed(folder, lambda: written(folder))
            assert a == b == c
            seen.add(a)
    finally:
        writer.kill()
        writer.wait()
    assert missing == 0 and len(seen) >= 20


@exchanging
def test_a_killed_writer_leaves_a_whole_folder_and_the_next_one_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "it"
    for n in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(1000 * n)])
        while not folder.is_dir():
            time.sleep(0.01)
        time.sleep(0.15 + 0.0037 * n)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        a, b, c = written(folder)
        assert a == b == c and len(a) >= 2000
    (tmp_path / ".it.other").mkdir()
    (tmp_path / temporary_beside(tmp_path / "its").name).mkdir()
    other = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".it.") or path.name == ".it.other"}
    half = temporary_beside(folder)
    half.mkdir()
    write_folder(folder, dict.fromkeys("abc", "new"))
    assert half.is_dir()  # its writer may be alive
    monkeypatch.setattr(files, "_ABANDONED", -1.0)
    write_folder(folder, dict.fromkeys("abc", "newer"))
    assert {path.name for path in tmp_path.iterdir()} == other


def test_a_folder_that_a_killed_writer_had_moved_away_comes_back(folder: Path) -> None:
    folder.rename(temporary_beside(folder, "old"))
    with pytest.raises(ExciseError, match=r"other files \(a\)"):
        write_folder(folder, {"b": "new"})
    assert (folder / "a").read_text() == "old"
    assert [path.name for path in folder.parent.iterdir()] == ["it"]


def test_a_link_to_a_folder_is_replaced_and_its_target_stays(folder: Path) -> None:
    link = folder.with_name("link")
    link.symlink_to(folder)
    write_folder(link, {"a": "new"})
    assert not link.is_symlink() and (link / "a").read_text() == "new"
    assert (folder / "a").read_text() == "old"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["it", "link"]


def test_without_an_exchange_threads_lose_no_write_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_exchange(monkeypatch)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: write_folder(tmp_path / "it", {"a": str(n)}), range(100)))
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_reading_a_folder_that_stays_raises_what_the_reader_raises(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        unmixed(folder, lambda: (folder / "b").read_text())
    with pytest.raises(FileNotFoundError):
        unmixed(folder / "none", lambda: (folder / "none" / "b").read_text())


def test_a_folder_that_is_replaced_without_end_is_one_line(folder: Path) -> None:
    with pytest.raises(ExciseError, match="replaced again and again"):
        unmixed(folder, lambda: write_folder(folder, {"a": "new"}))
