"""Timing for the speed benchmarks: variants run in turns, so that other load on the machine affects all equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def interleaved(variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of `rounds` calls of each variant, one of each in turn, after an untimed call of each."""
    for call in variants.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def compared(seconds: list[float], other: list[float]) -> dict[str, float]:
    """Return the median of seconds / other over rounds, with its quartiles, and the median of the seconds."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(seconds, other, strict=True)], n=4)
    return {"ratio": middle, "low": low, "high": high, "seconds": statistics.median(seconds)}
