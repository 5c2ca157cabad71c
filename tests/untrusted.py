"""Files from strangers that are not what they seem, for the tests of every reader."""

from __future__ import annotations

import os
from pathlib import Path

FILES = ("fifo", "device", "link to a device", "sparse", "huge and sparse", "directory")


def put(kind: str, path: Path) -> Path:
    """Replace `path` by a file of this kind and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif "device" in kind:
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 2**42 if "huge" in kind else 2**30)
    return path


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
SURROGATE = '"\\ud83d"'
