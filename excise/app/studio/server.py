"""The studio's server: on the loopback interface alone, silent about what visitors write."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from excise.app.serve.visitors import foreign
from excise.app.studio.studio import Studio
from excise.errors import ExciseError
from excise.interruption import surviving
from excise.loading import quiet

HOST = "127.0.0.1"
SECONDS_TO_CLOSE = 2
"""Seconds that answers have to end when the studio closes: an open page listens to it without end."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; worker-src 'self' blob:; font-src 'self' data:; frame-ancestors 'none'; "
    "base-uri 'self'; form-action 'self'"
)
"""Content-Security-Policy of the page: whatever it is made of, the browser asks no other machine for anything."""


def listening(port: int) -> socket.socket:
    """Return a socket that listens on the loopback interface. Port 0 takes a free one.

    Raises:
        ExciseError: The port is taken.
    """
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((HOST, port))
        made.listen()  # visitors who come before the server runs wait
    except OSError as error:
        made.close()
        raise ExciseError(
            f"cannot listen on port {port} of {HOST} ({error.strerror}); choose another with --port, 0 for a free one"
        ) from error
    return made


def application(studio: Studio) -> Any:
    """Return the ASGI application. Gradio keeps pictures and downloads in the studio's folder, and reports nothing."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(studio.scratch)}
    import gradio as gr
    from fastapi import FastAPI
    from starlette.responses import PlainTextResponse

    from excise.app.studio.page import build, look

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(request: Any, answer: Callable[[Any], Awaitable[Any]]) -> Any:
        if why := foreign(request.headers):
            return PlainTextResponse(why, 403)
        made = await answer(request)
        made.headers["Content-Security-Policy"] = POLICY
        made.headers["Referrer-Policy"] = "no-referrer"
        return made

    return gr.mount_gradio_app(
        app,
        build(studio),
        path="/",
        server_name=HOST,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=0,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        **look(),
    )


def server_of(studio: Studio) -> Any:
    """Return a uvicorn server of the studio, which logs no request."""
    import uvicorn

    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)  # its tracebacks could quote a prompt
    config = uvicorn.Config(
        application(studio),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_CLOSE,
    )
    return uvicorn.Server(config)


def serve(studio: Studio, listener: socket.socket, opened: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C or SIGTERM. `opened` is called with its address. All pictures are deleted then."""
    try:
        server = server_of(studio)
        opened(address_of(listener))
        # diffusers logs the end of a prompt that it does not read
        with surviving(signal.SIGINT, signal.SIGTERM), quiet(always=True):
            server.run(sockets=[listener])
    finally:
        studio.close()


def address_of(listener: socket.socket) -> str:
    """Return the address of the page that a socket listens for."""
    return f"http://{HOST}:{listener.getsockname()[1]}"
