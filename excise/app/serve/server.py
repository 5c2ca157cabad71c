"""Running the service: start, reload on SIGHUP, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Collection
from types import FrameType
from typing import Any

import uvicorn

from excise.app.serve import http
from excise.app.serve.engine import Engine
from excise.app.serve.logs import log
from excise.app.serve.visitors import is_loopback
from excise.errors import ExciseError, InvalidSetting
from excise.interruption import surviving

_RELOAD = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []


def serve(engine: Engine, *, name: str, host: str, port: int, drain: int) -> None:
    """Serve until SIGTERM or Ctrl-C. The model is loaded and its erasers are proved before the first request.

    Args:
        engine: The engine. SIGHUP reads its policy again, once it serves.
        name: The served model's name.
        host: Address to listen on. One that other machines can reach needs API keys.
        port: Port to listen on; 0 chooses a free one, which the log states.
        drain: Most seconds that requests have to end after SIGTERM.

    Raises:
        ExciseError: An eraser, the model, a key or the address is refused.
    """
    allowed = http.keys()
    if not allowed and not is_loopback(host):
        raise InvalidSetting(
            f"{host} can be reached by others and there are no API keys; set {http.KEYS} to random ones, separated by "
            "commas, or serve on 127.0.0.1"
        )
    try:
        with surviving(*_RELOAD) as came:
            engine.submit(engine.start).result()
            with surviving(signal.SIGTERM, signal.SIGINT):
                asyncio.run(_run(http.Service(engine, name, allowed), host, port, drain, came))
    finally:
        engine.stop()


def check(engine: Engine) -> dict[str, str]:
    """Load all that `serve` would, prove the erasers, and return their digests by name. Raises ExciseError as it."""
    try:
        engine.submit(engine.start).result()
        assert engine.served is not None
        return engine.served.digests
    finally:
        engine.stop()


async def _run(service: http.Service, host: str, port: int, drain: int, came: Collection[int]) -> None:
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)  # its tracebacks could quote a prompt
    config = uvicorn.Config(
        http.app_of(service),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=drain,
    )
    try:
        listening = config.bind_socket()
    except SystemExit as error:  # how uvicorn reports it
        raise ExciseError(f"cannot listen on {host}:{port}; is the port taken? choose another with --port") from error
    listening.listen()  # requests wait from the line in the log on, also before the server runs
    reloads: set[asyncio.Task[Any]] = set()
    loop = asyncio.get_running_loop()

    def reload() -> None:
        reloads.add(task := loop.create_task(service.reload()))
        task.add_done_callback(reloads.discard)

    for number in _RELOAD:
        loop.add_signal_handler(number, reload)
    served = service.engine.served
    digests = served.digests if served is not None else {}
    log("serving", host=host, port=listening.getsockname()[1], erasers=digests, keys=len(service.allowed))
    if came:  # while the model was loaded
        reload()
    await _Server(config, service.engine).serve([listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._engine.stopping = True
        super().handle_exit(sig, frame)
