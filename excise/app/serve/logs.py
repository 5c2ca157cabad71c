"""Log lines of a service: one JSON object a line on standard error, never with a prompt."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from excise.errors import json_printable

_LOCK = threading.Lock()


def log(event: str, **facts: Any) -> None:
    """Write one line. `facts` are numbers, names and our own messages."""
    line = {"time": round(time.time(), 3), "event": event, **facts}
    text = json_printable(json.dumps(line, ensure_ascii=False))
    with _LOCK:
        print(text, file=sys.stderr, flush=True)


def place_of(error: BaseException) -> str:
    """Return the type of an unexpected error and where it was raised. Its message may quote a prompt."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{where}"
