"""Settings of the baselines, which every comparison has."""

from __future__ import annotations

from dataclasses import dataclass

from excise.settings import Settings, setting


@dataclass(frozen=True)
class NoneConfig(Settings):
    """Nothing to choose."""


@dataclass(frozen=True)
class SafetyFilterConfig(Settings):
    """What is blocked."""

    threshold: float | None = setting(
        None,
        "From which cosine on a prompt is blocked; none: the one that tells the concept's pairs apart best.",
        unit="cosine",
        least=-1,
        most=1,
    )
    phrases: str = setting("", "More sentences to block, separated by semicolons.")
