"""Identity of a worker process, and whether one that ran on this machine is still alive.

Host name and process id are not enough: two containers may share both, and ids are reused. A process is identified by
where it runs (this boot, this PID namespace), its id and its start time.
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
    """Return this process's name, `host.place.pid.start`, valid in a file name. The host part is only for people."""
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0])[:24]
    return f"{host}.{_place()}.{os.getpid()}.{_started('self') or 0}"


def is_dead(worker: str) -> bool:
    """Return whether the worker ran in the same place as this process and has ended.

    Returns False if it ran elsewhere or its state is unknown. Then only its signs of life count.
    """
    parts = worker.split(".")
    if len(parts) != 4 or parts[1] != _place() or not parts[2].isdigit():
        return False
    pid, start = int(parts[2]), parts[3]
    # /proc may belong to another namespace, where the id is another process's.
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
    """Return twelve hexadecimal digits that two processes share only if they share process ids."""
    try:
        where = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux: identify the machine by its network card, or else by a random number
        where = str(uuid.getnode())
    return hashlib.sha256(f"{socket.gethostname()}/{where}".encode()).hexdigest()[:12]


def _own_proc() -> bool:
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def _started(pid: str) -> int | None:
    """Return a process's start time in kernel ticks since boot, or None if it does not exist or is a zombie."""
    try:
        # The command's name, in parentheses, may contain any character.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
