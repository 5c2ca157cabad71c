"""Counters of a service in Prometheus's text format. They hold names of erasers and no prompt."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from excise.erasers.telemetry import Event, on_event

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 40, 80, 160)


class Metrics:
    """One service's metrics."""

    def __init__(self) -> None:
        self._all = own = CollectorRegistry()
        self.requests = Counter("excise_requests", "Requests for pictures, by HTTP status", ["status"], registry=own)
        self.pictures = Counter("excise_pictures", "Pictures that left the service", registry=own)
        self.fired = Counter("excise_fired", "Requests whose prompt an eraser acted on", ["eraser"], registry=own)
        self.refused = Counter("excise_refused", "Requests refused because an eraser acted", ["eraser"], registry=own)
        self.rows = Counter("excise_rows_edited", "Text states that an eraser changed", ["eraser"], registry=own)
        self.bypasses = Counter("excise_bypasses", "Times that states bypassed an eraser", ["eraser"], registry=own)
        self.seconds = Histogram("excise_request_seconds", "Seconds per request", buckets=SECONDS, registry=own)
        self.waiting = Gauge("excise_requests_waiting", "Requests that are being answered or wait", registry=own)
        self.ready = Gauge("excise_ready", "1 if the erasers are in force, else 0", registry=own)
        self.reloads = Counter("excise_policy_reloads", "Reloads of the policy, by result", ["result"], registry=own)

    def listen(self) -> Callable[[], None]:
        """Count bypasses from now on. Return a function that stops it."""
        return on_event(self._count)

    def _count(self, event: Event) -> None:
        if event.kind == "bypass":
            self.bypasses.labels(event.name).inc()

    def text(self) -> bytes:
        """Return all metrics as text."""
        return generate_latest(self._all)
