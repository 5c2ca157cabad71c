"""A lock is one process's, and ends with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from excise.errors import ExciseError
from excise.locks import locked

HOLDER = """
import sys, time
from pathlib import Path
from excise.locks import locked
with locked(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_a_lock_is_free_again_when_its_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "True\n"
            with locked(path) as mine:
                assert not mine
        finally:
            holder.kill()
            holder.wait()
    for _ in range(2):
        with locked(path) as mine, locked(path) as other:
            assert (mine, other) == (True, False)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExciseError, match="cannot write"), locked(tmp_path / "file" / "lock"):
        pass
