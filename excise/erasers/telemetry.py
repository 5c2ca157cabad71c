"""Telemetry: events with counters of what attached erasers do. They never hold a prompt or a tensor."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from excise.errors import MissingExtra

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

log = logging.getLogger("excise")

Kind = Literal["attached", "detached", "strength", "encoded", "bypass"]


@dataclass(frozen=True)
class Event:
    """Something that an attached eraser did. Its counters count from the eraser's event before."""

    kind: Kind
    """"encoded": prompts passed through the edit. "bypass": states bypassed it, whether or not that was allowed."""
    eraser: str
    """The first 12 digits of the eraser's digest."""
    name: str
    """Its name on this pipeline."""
    calls: int = 0
    """Number of prompts encoded: a call of `encode_prompt` with several counts each of them."""
    rows_edited: int = 0
    """Number of text states changed; 0 for a prompt in which the neuron does not fire."""
    mean_delta_norm: float = 0.0
    """Mean L2 norm of what was subtracted from those states."""
    strength: float = 1.0
    """The current strength; 0 while it is disabled."""


Callback = Callable[[Event], object]


class _Listener:
    """One registration of a callback. The same function may be registered again, and each is removed separately."""

    def __init__(self, callback: Callback) -> None:
        self.callback, self.failed = callback, False

    def call(self, event: Event) -> None:
        try:
            self.callback(event)
        except Exception:  # a failing callback must not stop generation
            if not self.failed:
                log.warning("a telemetry callback failed; later failures are not reported", exc_info=True)
            self.failed = True


_LOCK = threading.Lock()
_listeners: tuple[_Listener, ...] = ()
"""Replaced, never mutated: other threads may be iterating over it."""


def on_event(callback: Callback) -> Callable[[], None]:
    """Call `callback` with every Event of every eraser in this process, in the thread where it happens.

    A callback that raises is logged once and does no harm, but a slow one slows generation down.

    Args:
        callback: A function of an Event.

    Returns:
        A function that removes the callback. Calling it twice is harmless.
    """
    global _listeners
    listener = _Listener(callback)

    def remove() -> None:
        global _listeners
        with _LOCK:
            _listeners = tuple(other for other in _listeners if other is not listener)

    with _LOCK:
        _listeners = (*_listeners, listener)
    return remove


def listening() -> bool:
    """Whether there are callbacks, for counters that are expensive to gather."""
    return bool(_listeners)


def emit(event: Event) -> None:
    """Call every callback. Without any it costs almost nothing."""
    for listener in _listeners:
        listener.call(event)


def opentelemetry_exporter(meter: Meter | None = None) -> Callable[[], None]:
    """Export to OpenTelemetry `excise.prompts`, `excise.rows_edited`, `excise.bypasses` and `excise.delta_norm`.

    Args:
        meter: An OpenTelemetry meter, by default the global provider's.

    Returns:
        A function that stops the export.

    Raises:
        MissingExtra: if opentelemetry-api is not installed.
    """
    try:
        from opentelemetry.metrics import get_meter
    except ImportError as error:
        raise MissingExtra("opentelemetry-api is not installed; run `pip install 'excise[otel]'`") from error
    if meter is None:
        from importlib.metadata import version

        meter = get_meter("excise", version("excise"))
    prompts = meter.create_counter("excise.prompts", "{prompt}", "Prompts encoded under an eraser")
    rows = meter.create_counter("excise.rows_edited", "{row}", "Text states an eraser changed")
    bypasses = meter.create_counter("excise.bypasses", "{bypass}", "Times that states bypassed an eraser")
    norms = meter.create_histogram("excise.delta_norm", "1", "Mean L2 norm of what was subtracted from a changed state")

    def count(event: Event) -> None:
        labels = {"excise.eraser": event.eraser, "excise.eraser.name": event.name}
        if event.kind == "bypass":
            bypasses.add(1, labels)
        prompts.add(event.calls, labels)
        rows.add(event.rows_edited, labels)
        if event.rows_edited:
            norms.record(event.mean_delta_norm, labels)

    return on_event(count)
