"""Engine `processes`: workers on this machine, each a process of its own that takes one item at a time.

`concurrent.futures` fails every item in flight when one worker dies. Here each worker has its own pipe, so a death is
charged to the item that the worker held.
"""

from __future__ import annotations

import _thread
import multiprocessing
import os
import pickle
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from excise.engine.stage import Answer, Needs, Stage
from excise.engine.working import attempt, failed, opened
from excise.interruption import as_ctrl_c

PATIENCE = 60.0
"""Seconds that a worker gets after Ctrl-C to write a checkpoint."""
_END: tuple[()] = ()
"""Message that ends a worker. An item is sent as a tuple of one."""


@dataclass(eq=False)
class _Worker:
    number: int
    process: Any
    pipe: Any
    opened: bool = False


class Processes:
    """Pool of `workers` processes. Where they need a GPU, they take turns over the visible ones."""

    def __init__(self, stage: Stage[Any], needs: Needs, workers: int) -> None:
        self._stage, self._needs = pickle.dumps(stage), needs
        self._workers = self._limit = workers
        self._cards = visible_cards() if needs.gpus else []
        self._idle: list[_Worker] = []
        self._busy: dict[_Worker, Any] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        workers, deadline = (*self._idle, *self._busy), time.monotonic() + PATIENCE
        try:
            for worker in self._busy:
                with suppress(ProcessLookupError, ValueError):
                    os.kill(worker.process.pid, signal.SIGTERM)
            for worker in workers:
                with suppress(OSError):
                    worker.pipe.send(_END)
            for worker in workers:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for worker in workers:
                worker.process.kill()
                worker.pipe.close()

    def free(self) -> bool:
        return len(self._busy) < self._limit

    def submit(self, item: Any) -> None:
        while self._idle:
            worker = self._idle.pop()
            try:
                worker.pipe.send((item,))
            except OSError:  # it died since its last item
                continue
            break
        else:
            worker = self._start()
            with suppress(OSError):  # it died already, which `wait` reports
                worker.pipe.send((item,))
        self._busy[worker] = item

    def wait(self) -> list[tuple[Any, Answer]]:
        pipes = {worker.pipe: worker for worker in self._busy}
        ready = connection.wait([*pipes, *(worker.process.sentinel for worker in self._busy)])
        answers = []
        for worker in list(self._busy):
            if worker.pipe not in ready and worker.process.sentinel not in ready:
                continue
            answer = self._received(worker)
            if answer is None:  # the stage is open, and the item has begun
                worker.opened = True
                continue
            item = self._busy.pop(worker)
            answers.append((item, answer))
            if answer.kind in ("lost", "unopened"):
                worker.pipe.close()
                worker.process.join()
                if not worker.opened:  # such as for lack of memory: continue with those that could start
                    self._limit = max(1, len(self._idle) + len(self._busy))
            else:
                self._idle.append(worker)
        return answers

    def _received(self, worker: _Worker) -> Answer | None:
        """Return a worker's message, or that it was lost if it ended without one."""
        try:
            message: Answer | None = worker.pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            worker.process.join()
            code = worker.process.exitcode
            why = (
                f"its worker ended with exit code {code}" if code >= 0 else f"its worker was killed by {_signal(-code)}"
            )
            return Answer("lost" if worker.opened else "unopened", error="Lost", why=why)
        return message

    def _start(self) -> _Worker:
        used = {worker.number for worker in (*self._idle, *self._busy)}
        number = next(n for n in range(len(used) + 1) if n not in used)
        card = self._cards[number % len(self._cards)] if self._cards else None
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, self._stage, card, self._needs.cpus, self._workers)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return _Worker(number, process, ours)


def visible_cards() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    try:
        import torch
    except ImportError:
        return []
    return [str(number) for number in range(torch.cuda.device_count())]


def _signal(number: int) -> str:
    name = signal.Signals(number).name if number in {one.value for one in signal.Signals} else str(number)
    return f"{name}, perhaps for lack of memory" if name == "SIGKILL" else name


def _watch_driver() -> None:
    """Stop this worker when its driver has died: in the middle of an item it reads no pipe."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    connection.wait([driver.sentinel])
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)  # ends its system call too
    else:
        _thread.interrupt_main()
    time.sleep(PATIENCE)
    os._exit(1)


def _serve(pipe: Any, stage: bytes, card: str | None, threads: int, share: int) -> None:
    """Open the stage and answer items until the pipe ends, or the driver.

    In its own session the worker does not receive Ctrl-C from the terminal: the driver sends SIGTERM instead. A
    scheduler may send that to all processes of a job too, so only the first one counts: a training would take a second
    Ctrl-C for haste, and write no checkpoint.
    """
    with suppress(OSError, AttributeError):
        os.setsid()
    as_ctrl_c(once=True)
    threading.Thread(target=_watch_driver, daemon=True).start()
    if card is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = card  # before torch looks for GPUs
    try:
        try:
            make = opened(stage, threads, share)
        except Exception as error:
            pipe.send(failed(error, "unopened"))
            return
        pipe.send(None)
        while message := pipe.recv():
            pipe.send(attempt(make, *message))
    except (KeyboardInterrupt, EOFError, OSError):
        return
