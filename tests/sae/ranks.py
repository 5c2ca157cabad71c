"""Ranks for tests: processes on this machine that talk over loopback, joined by a file instead of a port."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from excise.sae.parallel import Mesh
from tests.processes import processes

DEADLINE = 60
"""Seconds after which ranks that have not answered count as hanging."""


def _rank(work: Callable[..., Any], rank: int, sizes: tuple[int, int], store: Path, pipe: Any, given: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    number = sizes[0] * sizes[1]
    try:
        dist.init_process_group("gloo", store=dist.FileStore(str(store), number), rank=rank, world_size=number)
        answer = (True, work(Mesh.join(*sizes), *given))
    except BaseException as error:
        answer = (False, (type(error).__name__, str(error), traceback.format_exc()))
    pipe.send_bytes(pickle.dumps(answer))
    pipe.close()
    os._exit(0)  # without the handlers of the process that forked this one


def answers(
    sizes: tuple[int, int], work: Callable[..., Any], store: Path, *given: Any, deadline: float = DEADLINE
) -> list[tuple[bool, Any]]:
    """Run `work(mesh, *given)` on data x latents ranks. Return for each whether it ended, and its answer or error."""
    context = processes()
    running = []
    for rank in range(sizes[0] * sizes[1]):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_rank, args=(work, rank, sizes, store, there, given))
        process.start()
        there.close()
        running.append((process, here))
    end = time.monotonic() + deadline
    try:
        return [_answer(here, max(0.0, end - time.monotonic())) for _, here in running]
    finally:
        for process, _ in running:
            process.kill()
            process.join()


def _answer(pipe: Any, seconds: float) -> tuple[bool, Any]:
    try:
        return pickle.loads(pipe.recv_bytes()) if pipe.poll(seconds) else (False, ("it hangs",))
    except EOFError:
        return False, ("it was killed",)


def on_ranks(
    sizes: tuple[int, int], work: Callable[..., Any], store: Path, *given: Any, deadline: float = DEADLINE
) -> list[Any]:
    """Return every rank's answer to `work(mesh, *given)`; a rank that raised fails the test with its traceback."""
    found = answers(sizes, work, store, *given, deadline=deadline)
    assert all(ended for ended, _ in found), "\n".join(answer[-1] for ended, answer in found if not ended)
    return [answer for _, answer in found]


def torchrun(*words: object, number: int, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Start so many processes by torchrun, which talk over loopback alone, and return what they printed."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", number]
    command = [*head, "--max-restarts", restarts, *words]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, check=False)
