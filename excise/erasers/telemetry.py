"""Telemetry: what attached erasers do, in counters, for whoever asks to be told. Never a prompt, never a tensor."""

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
    """Something an attached eraser did. Its counters say what was added since this eraser's event before."""

    kind: Kind
    """"encoded": prompts went through the edit; "bypass": states went round it, whether or not that was allowed."""
    eraser: str
    """The first 12 digits of the eraser's digest."""
    name: str
    """What it is called on this pipeline."""
    calls: int = 0
    """`encode_prompt` calls."""
    rows_edited: int = 0
    """Text states that were changed; 0 for a prompt in which the neuron is silent."""
    mean_delta_norm: float = 0.0
    """Mean L2 norm of what was subtracted from those states."""
    strength: float = 1.0
    """The strength it has now; 0 while it is disabled."""


Callback = Callable[[Event], object]


class _Listener:
    """A callback that was registered once; the same function may be registered again, and removed apart."""

    def __init__(self, callback: Callback) -> None:
        self.callback, self.failed = callback, False

    def tell(self, event: Event) -> None:
        try:
            self.callback(event)
        except Exception:  # whatever a stranger's callback raises: watching must not stop what is watched
            if not self.failed:
                log.warning("a telemetry callback failed; it is called on, and not reported again", exc_info=True)
            self.failed = True


_LOCK = threading.Lock()
_listeners: tuple[_Listener, ...] = ()
"""Replaced, never changed: pipelines in other threads may be going through it."""


def on_event(callback: Callback) -> Callable[[], None]:
    """Call `callback` with every Event of every eraser in this process, in the thread it happens in.

    What comes back takes it off again; calling that twice is harmless. A callback that raises is logged once and
    breaks nothing, but one that is slow slows generation down.
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
    """Whether anybody is told, for counters that cost something to gather."""
    return bool(_listeners)


def emit(event: Event) -> None:
    """Tell every callback; nearly free where there is none."""
    for listener in _listeners:
        listener.tell(event)


def opentelemetry_exporter(meter: Meter | None = None) -> Callable[[], None]:
    """Feed OpenTelemetry: `excise.prompts`, `excise.rows_edited`, `excise.bypasses` and `excise.delta_norm`, by eraser.

    `meter` is the global provider's unless given. What comes back stops it, as with `on_event`. Raises ExciseError
    where opentelemetry-api is not installed.
    """
    try:
        from opentelemetry.metrics import get_meter
    except ImportError as error:
        raise MissingExtra("opentelemetry-api is not installed; `pip install 'excise[otel]'`") from error
    if meter is None:
        from importlib.metadata import version

        meter = get_meter("excise", version("excise"))
    prompts = meter.create_counter("excise.prompts", "{prompt}", "Prompts encoded under an eraser")
    rows = meter.create_counter("excise.rows_edited", "{row}", "Text states an eraser changed")
    bypasses = meter.create_counter("excise.bypasses", "{bypass}", "States that went round an eraser")
    norms = meter.create_histogram("excise.delta_norm", "1", "Mean L2 norm of what was subtracted from a changed state")

    def count(event: Event) -> None:
        labels = {"excise.eraser": event.eraser, "excise.eraser.name": event.name}
        if event.kind == "bypass":
            bypasses.add(max(event.calls, 1), labels)
        elif event.kind == "encoded":
            prompts.add(event.calls, labels)
            rows.add(event.rows_edited, labels)
            if event.rows_edited:
                norms.record(event.mean_delta_norm, labels)

    return on_event(count)
