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

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from excise.app.serve import asking
from excise.app.serve.engine import Engine, Made, NotReady, Refused
from excise.app.serve.failures import DENIED, INVALID, Failure, as_failure, client_gone, response_of
from excise.app.serve.logs import log, place_of
from excise.app.serve.metrics import CONTENT_TYPE, Metrics
from excise.app.serve.visitors import foreign
from excise.errors import ExciseError, InvalidSetting

KEYS = "EXCISE_API_KEYS"
"""Environment variable with the API keys, separated by commas."""
SHORTEST_KEY = 16
PAGES = "POST /v1/images/generations, GET /v1/models, /healthz, /readyz and /metrics"
CANARY_EVERY = 5.0
"""Fewest seconds between two canaries of `/readyz`, which anyone may ask."""


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
        self.metrics.ready.set_function(lambda: not self.reasons())
        self.metrics.waiting.set_function(lambda: engine.waiting)
        self._proof: asyncio.Future[list[str]] | None = None
        """The newest proof by the canaries."""
        self._begun = float("-inf")
        """When it began."""
        self._doubts: list[str] = []
        """The reasons that the last proof to end gave, if no picture was made since."""

    @property
    def model(self) -> dict[str, Any]:
        """The served model, as OpenAI describes one."""
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "excise"}

    def check_visitor(self, request: Request) -> None:
        """Raise Failure for a page of another site, if the service has no keys."""
        if not self.allowed and (why := foreign(request.headers)):
            raise Failure(403, f"{why}, or set {KEYS}", DENIED, "foreign_page")

    def check_key(self, request: Request) -> None:
        """Raise Failure unless the request has one of the keys, or without keys comes from this machine."""
        self.check_visitor(request)
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
        except (Exception, asyncio.CancelledError) as raised:
            # uvicorn cancels what is left when --drain is over
            error = raised if isinstance(raised, Exception) else NotReady("the service is stopping")
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
        if reasons := engine.reasons():
            raise NotReady("; ".join(reasons))
        body = await _body(request)
        asked = asking.read(body, engine.policy, model=self.name, steps=engine.steps, multiple=engine.multiple)
        if engine.waiting >= engine.policy.limits.waiting:
            raise Failure(429, "too many requests are waiting; try again later", "rate_limit_error", "queue_full")
        gone = False
        work = engine.submit(lambda: engine.generate(asked, lambda: gone))
        engine.waiting += 1
        waiting = asyncio.wrap_future(work)
        waiting.add_done_callback(self._left)
        try:
            while not (await asyncio.wait({waiting}, timeout=1))[0]:
                if await request.is_disconnected():
                    raise client_gone()
            made = waiting.result()
            self._doubts = []  # the erasers are in force, whatever kept the canaries from being encoded
        finally:
            gone = True
            work.cancel()
        fired = [name for name, rows in made.rows.items() if rows]
        facts |= {"pictures": len(made.pictures), "fired": fired, "flagged": made.flagged, "strengths": made.strengths}
        for eraser in fired:
            self.metrics.fired.labels(eraser).inc()
            self.metrics.rows.labels(eraser).inc(made.rows[eraser])
        self.metrics.pictures.inc(len(made.pictures))
        return _answer(made, fired, asked.png)

    def _left(self, waiting: asyncio.Future[Made]) -> None:
        """Count a request that the worker has done with, also when its client has gone."""
        self.engine.waiting -= 1
        if not waiting.cancelled():
            waiting.exception()  # which asyncio would print if no caller asks for it

    def reasons(self) -> list[str]:
        """Return why it must take no request now, by the last proof; empty if it may."""
        return self.engine.reasons() or self._doubts

    async def _prove(self) -> None:
        """Encode the canaries, unless they just were or the worker is busy. Whoever asks meanwhile shares the proof."""
        engine, now = self.engine, time.monotonic()
        if engine.idle and now - self._begun >= self.canary_every:
            self._begun = now
            self._proof = asyncio.wrap_future(engine.submit(engine.prove))
            self._proof.add_done_callback(self._proved)
        if self._proof is not None:
            await asyncio.wait({self._proof})  # it goes on if this request is cancelled

    def _proved(self, proof: asyncio.Future[list[str]]) -> None:
        if not proof.cancelled():
            self._doubts = proof.result()

    async def ready(self) -> Response:
        """Answer `GET /readyz`."""
        engine = self.engine
        if not engine.reasons():
            await self._prove()
        reasons = self.reasons()
        digests = engine.served.digests if engine.served is not None else {}
        status = 503 if reasons else 200
        return JSONResponse({"ready": not reasons, "reasons": reasons, "erasers": digests}, status_code=status)

    async def reload(self) -> bool:
        """Put the policy's file in force. Return whether it was, and log it."""
        try:
            await asyncio.wrap_future(self.engine.submit(self.engine.reload))
        except Exception as error:
            self.metrics.reloads.labels("refused").inc()
            reason = str(error) if isinstance(error, ExciseError) else place_of(error)
            log("policy refused; the one before stays", reason=reason)
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
    """Read the body. Raises Failure if it is too long, without reading on, or if the client goes."""
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > asking.MOST_BYTES:
                raise Failure(413, f"the body has more than {asking.MOST_BYTES} bytes", INVALID, "too_long")
            parts.append(part)
    except ClientDisconnect:
        raise client_gone() from None
    return b"".join(parts)


def app_of(service: Service) -> FastAPI:
    """Return the application."""
    app = FastAPI(title="Excise", docs_url=None, redoc_url=None, openapi_url=None, lifespan=service.life)
    local: dict[str, Any] = {"dependencies": [Depends(service.check_visitor)]}

    @app.exception_handler(Failure)
    async def _failure(request: Request, error: Failure) -> Response:
        return response_of(error)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        what = f"{error.detail}; this service has {PAGES}"
        return response_of(Failure(error.status_code, what, INVALID, "no_such_page"))

    for path in ("/v1/images/generations", "/v1/images"):
        app.add_api_route(path, service.images, methods=["POST"])
    app.add_api_route("/readyz", service.ready, methods=["GET"], **local)

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

    @app.get("/healthz", **local)
    async def _healthy() -> Any:
        return {"alive": True}

    @app.get("/metrics", **local)
    async def _metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    return app
