"""The service over a real socket: in a thread of this process, whose pipeline a test can alter, or in its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from excise.app.serve.engine import Engine
from excise.app.serve.http import Service, app_of

ROOT = Path(__file__).parents[3]
WAIT = 300
"""Most seconds to wait for anything; only a hang takes them."""


def until(true: Callable[[], bool]) -> None:
    """Wait until it is true."""
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def serving(engine: Engine, allowed: Sequence[bytes] = (), canary_every: float = 0) -> Iterator[httpx.Client]:
    """Serve a started engine on a free port, and yield a client of it."""
    config = uvicorn.Config(
        app_of(Service(engine, "tiny", allowed, canary_every)), port=0, log_config=None, access_log=False
    )
    listening, server = config.bind_socket(), uvicorn.Server(config)
    listening.listen()
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=WAIT) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(WAIT)
        assert not thread.is_alive()


class Process:
    """`excise serve` in its own process, on a free port. A context manager that kills it on leaving."""

    def __init__(self, policy: Path, *words: str, env: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "excise", "serve", str(policy), "--port", "0", *words]
        self.running = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
        )
        self.lines: list[str] = []
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.running.stderr is not None
        for line in self.running.stderr:
            with self._came:
                self.lines.append(line)
                self._came.notify_all()
        with self._came:
            self.lines.append("")
            self._came.notify_all()

    def logged(self, event: str, number: int = 1) -> dict[str, Any]:
        """Wait until an event was logged so many times, and return the last of these lines."""

        def found() -> list[dict[str, Any]]:
            return [json.loads(line) for line in tuple(self.lines) if f'"{event}"' in line]

        with self._came:
            assert self._came.wait_for(lambda: len(found()) >= number or "" in self.lines, WAIT)
        assert len(found()) >= number, "".join(self.lines)
        return found()[number - 1]

    def client(self, key: str = "") -> httpx.Client:
        """Return a client of the service, once it is up."""
        port = self.logged("serving")["port"]
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT, headers=headers)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.running.kill()
        self.running.wait(WAIT)
        self._reader.join(WAIT)
