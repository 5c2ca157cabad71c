"""What the benchmarks of speed share: variants timed in turns, so that what else the machine does meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def interleaved(variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, `rounds` of each variant, one of each in turn; one call of each goes before, uncounted."""
    for call in variants.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def beside(own: list[float], other: list[float]) -> dict[str, float]:
    """The median of own / other, round by round, with the quartiles between which half of the rounds lie."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(own, other, strict=True)], n=4)
    return {"ratio": middle, "low": low, "high": high, "seconds": statistics.median(own)}
