"""Processes that torchrun, srun or Ray Train started together; each knows its number from the environment."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = timedelta(days=1)
"""How long a process waits for the others. One that dies is noticed at once; one that reads prompts takes its time."""


def processes() -> int:
    """Return the number of processes that were started together; 1 if this one was started alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    number = os.environ.get("WORLD_SIZE", "1")
    return int(number) if number.isascii() and number.isdigit() else 1


def local_device(device: str) -> str:
    """Return this process's own GPU for `cuda`, by LOCAL_RANK, and any other device as it is.

    The GPU becomes the current one, so that nothing of this process lies on the first.
    """
    number = os.environ.get("LOCAL_RANK", "")
    if device != "cuda" or processes() == 1 or not number.isdigit():
        return device
    if torch.cuda.is_available():
        torch.cuda.set_device(int(number))
    return f"cuda:{number}"


def connect() -> None:
    """Connect the processes, unless they are: with gloo for tensors on the CPU, with NCCL for those on a GPU.

    Raises ValueError or RuntimeError if they do not find each other.
    """
    if not dist.is_initialized():
        cuda = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE, **_again())


def _again() -> dict[str, Any]:
    """Return where processes that torchrun started again find each other; nothing the first time.

    Its store still has the addresses of those before, and who reads one of these is refused. On several machines the
    counts of restarts may differ; there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives each restart a store of its own.
    """
    names = ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT", "GROUP_WORLD_SIZE")
    shared, count, machines = (os.environ.get(name, "") for name in names)
    if shared != "True" or count in ("", "0") or machines != "1":
        return {}
    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*where, is_master=False, timeout=PATIENCE)  # type: ignore[attr-defined]
    again = dist.PrefixStore(f"again-{count}", store)  # type: ignore[attr-defined]
    return {"store": again, "rank": int(os.environ["RANK"]), "world_size": processes()}
