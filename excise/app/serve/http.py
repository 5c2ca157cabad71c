"""The service's HTTP interface."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from excise.app.serve import asking
from excise.app.serve.engine import Engine, Made, NotReady, OutOfMemory, Refused
from excise.app.serve.logs import log, place_of
from excise.app.serve.metrics import CONTENT_TYPE, Metrics
from excise.app.serve.policy import NotAllowed
from excise.errors import ExciseError, InvalidSetting, one_line

KEYS = "EXCISE_API_KEYS"
"""Environment variable with the API keys, separated by commas."""
SHORTEST_KEY = 16
PAGES = "POST /v1/images/generations, GET /v1/models, /healthz, /readyz and /metrics"
CANARY_EVERY = 5.0
"""Fewest seconds between two canaries of `/readyz`, which anyone may ask."""


class Failure(ExciseError):
    """An answer other than 200: its status, and OpenAI's type, code and param (the field that is wrong) of it."""

    def __init__(self, status: int, message: str, kind: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param = status, kind, code, param


_INVALID, _DENIED, _SERVER = "invalid_request_error", "permission_error", "server_error"
_NO_MODEL = "model_not_found"
_ANSWERS: dict[type[ExciseError], tuple[int, str, str]] = {
    Refused: (403, _DENIED, "prompt_refused"),
    NotAllowed: (403, _DENIED, "not_allowed"),
    asking.NoSuchModel: (404, _INVALID, _NO_MODEL),
    InvalidSetting: (400, _INVALID, "invalid_request"),
    NotReady: (503, _SERVER, "not_ready"),
    OutOfMemory: (503, _SERVER, "out_of_memory"),
}
"""Status, type and code of each expected error."""
_HOPELESS = ("out_of_memory", "generation_failed")
"""Codes of failures that the same request would most likely meet again."""


def as_failure(error: Exception) -> Failure:
    """Return the answer to an error. That to an unexpected one says nothing of it."""
    if isinstance(error, Failure):
        return error
    for kind, (status, group, code) in _ANSWERS.items():
        if isinstance(error, kind):
            return Failure(status, str(error), group, code, getattr(error, "field", None))
    message = str(error) if isinstance(error, ExciseError) else "the picture could not be generated"
    return Failure(500, message, _SERVER, "generation_failed")


def response_of(failure: Failure) -> Response:
    """Return a failure as one line of JSON, in OpenAI's shape. Headers tell OpenAI's client whether to try again."""
    about = {"type": failure.kind, "param": failure.param, "code": failure.code}
    headers = {"Retry-After": "5"} if failure.status in (429, 503) else {}
    if failure.code in _HOPELESS:
        headers = {"X-Should-Retry": "false"}
    body = {"error": {"message": one_line(str(failure)), **about}}
    return JSONResponse(body, status_code=failure.status, headers=headers)


def keys() -> tuple[bytes, ...]:
    """Return the sha256 of each API key in the environment. Raises InvalidSetting for one that is too short."""
    found = [key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip()]
    if any(len(key) < SHORTEST_KEY for key in found):
        raise InvalidSetting(f"a key in {KEYS} has less than {SHORTEST_KEY} characters; give longer, random ones")
    return tuple(hashlib.sha256(key.encode()).digest() for key in found)


class Service:
    """An engine's answers to requests.

    Args:
        engine: The engine, which is started. It is stopped with the app.
        name: The served model's name.
        allowed: The API keys' sha256; empty for a service without keys.
        canary_every: Fewest seconds between two canaries of `/readyz`.
    """

    def __init__(
        self, engine: Engine, name: str, allowed: Sequence[bytes] = (), canary_every: float = CANARY_EVERY
    ) -> None:
        self.engine, self.name, self.allowed, self.canary_every = engine, name, allowed, canary_every
        self.metrics, self.created = Metrics(), int(time.time())
        self._proved: tuple[float, list[str]] = (float("-inf"), [])
        """When the canaries were last encoded, and the reasons that this gave."""

    @property
    def model(self) -> dict[str, Any]:
        """The served model, as OpenAI describes one."""
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "excise"}

    def check_key(self, request: Request) -> None:
        """Raise Failure unless the request has one of the keys, if the service has any."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(key.strip().encode()).digest()
        # All are compared, so that the time tells nothing.
        found = [hmac.compare_digest(given, known) for known in self.allowed]
        if self.allowed and not (any(found) and scheme.lower() == "bearer"):
            raise Failure(401, "give an API key: Authorization: Bearer KEY", "authentication_error", "invalid_api_key")

    async def images(self, request: Request) -> Response:
        """Answer `POST /v1/images/generations`, count it and log it."""
        begun, facts = time.monotonic(), dict[str, Any]()
        try:
            response = await self._images(request, facts)
        except Exception as error:
            failure = as_failure(error)
            response = response_of(failure)
            facts |= {"code": failure.code}
            if isinstance(error, Refused):
                facts["fired"] = error.names
                for eraser in error.names:
                    self.metrics.refused.labels(eraser).inc()
            if failure.status >= 500:
                facts["reason"] = str(error) if isinstance(error, NotReady) else place_of(error)
        seconds = time.monotonic() - begun
        self.metrics.requests.labels(str(response.status_code)).inc()
        self.metrics.seconds.observe(seconds)
        log("request", status=response.status_code, seconds=round(seconds, 3), **facts)
        return response

    async def _images(self, request: Request, facts: dict[str, Any]) -> Response:
        self.check_key(request)
        engine = self.engine
        if reasons := engine.reasons(canary=False):
            raise NotReady("; ".join(reasons))
        body = await _body(request)
        asked = asking.read(body, engine.policy, model=self.name, steps=engine.steps, multiple=engine.multiple)
        if engine.waiting >= engine.policy.limits.waiting:
            raise Failure(429, "too many requests are waiting; try again later", "rate_limit_error", "queue_full")
        gone = False
        engine.waiting += 1
        self.metrics.waiting.set(engine.waiting)
        try:
            work = engine.submit(lambda: engine.generate(asked, lambda: gone))
            waiting = asyncio.wrap_future(work)
            while not (await asyncio.wait({waiting}, timeout=1))[0]:
                if await request.is_disconnected():
                    gone = True
                    waiting.cancel()
                    raise Failure(499, "the client has gone", _INVALID, "client_closed_request")
            made = waiting.result()
        finally:
            engine.waiting -= 1
            self.metrics.waiting.set(engine.waiting)
        fired = [name for name, rows in made.rows.items() if rows]
        facts |= {"pictures": len(made.pictures), "fired": fired, "flagged": made.flagged, "strengths": made.strengths}
        for eraser in fired:
            self.metrics.fired.labels(eraser).inc()
            self.metrics.rows.labels(eraser).inc(made.rows[eraser])
        self.metrics.pictures.inc(len(made.pictures))
        return _answer(made, fired, asked.png)

    async def ready(self) -> Response:
        """Answer `GET /readyz`. Canaries are encoded again, unless they just were or a request is being answered."""
        engine = self.engine
        reasons, at = engine.reasons(canary=False), time.monotonic()
        if not reasons and not engine.waiting and at - self._proved[0] >= self.canary_every:
            self._proved = at, await asyncio.wrap_future(engine.submit(lambda: engine.reasons(canary=True)))
        reasons = reasons or self._proved[1]
        self.metrics.ready.set(not reasons)
        digests = engine.served.digests if engine.served is not None else {}
        status = 503 if reasons else 200
        return JSONResponse({"ready": not reasons, "reasons": reasons, "erasers": digests}, status_code=status)

    async def reload(self) -> bool:
        """Put the policy's file in force. Return whether it was, and log it."""
        try:
            await asyncio.wrap_future(self.engine.submit(self.engine.reload))
        except ExciseError as error:
            self.metrics.reloads.labels("refused").inc()
            log("policy refused; the one before stays", reason=str(error))
            return False
        self.metrics.reloads.labels("done").inc()
        served = self.engine.served
        log("policy in force", erasers=served.digests if served is not None else {})
        return True

    @asynccontextmanager
    async def life(self, app: FastAPI) -> AsyncIterator[None]:
        """Count bypasses while the app runs, and stop the engine at its end."""
        stop = self.metrics.listen()
        try:
            yield
        finally:
            await asyncio.to_thread(self.engine.stop)
            stop()
            log("stopped")


def _answer(made: Made, fired: list[str], as_png: bool) -> Response:
    erasers = {name: {"digest": made.digests[name], "strength": value} for name, value in made.strengths.items()}
    about: dict[str, Any] = {"erasers": erasers, "fired": fired, "flagged": made.flagged}
    if as_png:
        headers = {"X-Excise": json.dumps(about), "X-Excise-Seed": str(made.seeds[0])}
        return Response(made.pictures[0], media_type="image/png", headers=headers)
    pairs = zip(made.pictures, made.seeds, strict=True)
    data = [{"b64_json": base64.b64encode(picture).decode("ascii"), "seed": seed} for picture, seed in pairs]
    return JSONResponse({"created": int(time.time()), "data": data, "excise": {**about, "not_read": made.lost}})


async def _body(request: Request) -> bytes:
    """Read the body. Raises Failure if it is too long, without reading on."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > asking.MOST_BYTES:
            raise Failure(413, f"the body has more than {asking.MOST_BYTES} bytes", _INVALID, "too_long")
        parts.append(part)
    return b"".join(parts)


def app_of(service: Service) -> FastAPI:
    """Return the application."""
    app = FastAPI(title="Excise", docs_url=None, redoc_url=None, openapi_url=None, lifespan=service.life)

    @app.exception_handler(Failure)
    async def _failure(request: Request, error: Failure) -> Response:
        return response_of(error)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        what = f"{error.detail}; this service has {PAGES}"
        return response_of(Failure(error.status_code, what, _INVALID, "no_such_page"))

    for path in ("/v1/images/generations", "/v1/images"):
        app.add_api_route(path, service.images, methods=["POST"])
    app.add_api_route("/readyz", service.ready, methods=["GET"])

    @app.get("/v1/models")
    async def _models(request: Request) -> Any:
        service.check_key(request)
        return {"object": "list", "data": [service.model]}

    @app.get("/v1/models/{name:path}")
    async def _model(request: Request, name: str) -> Any:
        service.check_key(request)
        if name != service.name:
            raise as_failure(asking.NoSuchModel(service.name))
        return service.model

    @app.get("/healthz")
    async def _healthy() -> Any:
        return {"alive": True}

    @app.get("/metrics")
    async def _metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    return app
