"""The file that says what a folder is for, which several processes may write at once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from excise import files
from excise.errors import ExciseError
from excise.files import begun, sha256, temporary_beside


@pytest.mark.parametrize("other", [{"n": 1}, {"n": 2}])
def test_of_callers_at_once_the_first_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Any) -> None:
    """The second one comes while the first one's temporary file is in the folder."""
    path, write, found = tmp_path / "out" / "about.json", files._write, []

    def second(temporary: Path, data: bytes | str) -> None:
        write(temporary, data)
        monkeypatch.setattr(files, "_write", write)
        found.append(begun(path, other))

    monkeypatch.setattr(files, "_write", second)
    assert begun(path, {"n": 1}) == other == found[0]
    assert begun(path, {"n": 3}) == other
    assert [one.name for one in path.parent.iterdir()] == ["about.json"]


def test_a_killed_writer_does_not_spoil_the_folder(tmp_path: Path) -> None:
    temporary_beside(tmp_path / "about.json").write_text('{"n"')
    (tmp_path / "failures").mkdir()
    assert begun(tmp_path / "about.json", {"n": 1}) == {"n": 1}


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt"):
        begun(tmp_path / "about.json", {})
    with pytest.raises(ExciseError, match="is a file"):
        begun(tmp_path / "notes.txt" / "about.json", {})
    (tmp_path / "about.json").write_text("{")
    with pytest.raises(ValueError, match="Expecting property name"):
        begun(tmp_path / "about.json", {})


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 7])
def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(n % 251 for n in range(size))
    (tmp_path / "data").write_bytes(data)
    assert sha256(tmp_path / "data") == sha256(data) == hashlib.sha256(data).hexdigest()
