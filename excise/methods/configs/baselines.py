"""Settings of the baselines."""

from __future__ import annotations

from dataclasses import dataclass

from excise.settings import Settings, setting


@dataclass(frozen=True)
class NoneConfig(Settings):
    """No settings."""


@dataclass(frozen=True)
class SafetyFilterConfig(Settings):
    """What to block."""

    threshold: float | None = setting(
        None,
        "Cosine from which a prompt is blocked; none: the one that best separates the sides of the concept's pairs.",
        unit="cosine",
        least=-1,
        most=1,
    )
    phrases: str = setting("", "More sentences to block, separated by semicolons.")
