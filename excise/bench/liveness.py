"""Who a worker is, and whether one that ran on this machine still does.

A host's name and a process's number are not enough: two containers may share both, and numbers are used again. A
process is told by where it runs (this boot, this namespace of process numbers), its number and when it was started.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import uuid
from functools import lru_cache
from pathlib import Path


def name() -> str:
    """This process: `host.place.pid.start`, fit for a file's name. The host's name is for people only."""
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0])[:24]
    return f"{host}.{_place()}.{os.getpid()}.{_started('self') or 0}"


def is_dead(worker: str) -> bool:
    """Whether a worker of that name ran where this process runs and does not any more.

    False wherever it ran elsewhere, or it cannot be told: then only its signs of life count.
    """
    parts = worker.split(".")
    if len(parts) != 4 or parts[1] != _place() or not parts[2].isdigit():
        return False
    pid, start = int(parts[2]), parts[3]
    # /proc may be that of another namespace, where the number is another process's.
    if _own_proc():
        now = _started(str(pid))
        return now is None or (start != "0" and str(now) != start)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@lru_cache(maxsize=1)
def _place() -> str:
    """Twelve hexadecimal digits that processes share only where a process's number means the same to all of them."""
    try:
        where = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux: the machine by its network card, or where it has none by a random number
        where = str(uuid.getnode())
    return hashlib.sha256(f"{socket.gethostname()}/{where}".encode()).hexdigest()[:12]


def _own_proc() -> bool:
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def _started(pid: str) -> int | None:
    """When a process was started, in the kernel's ticks since boot; None where there is none, or only its remains."""
    try:
        # The command's name, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
