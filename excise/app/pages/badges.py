"""Badges: how a figure stands to its bar."""

from __future__ import annotations

from html import escape

from excise.bench.bars import MEANINGS, Standing

BADGES: dict[Standing | None, str] = {"reached": "good", "point only": "part", "missed": "bad", None: "plain"}
"""The look of a standing's badge."""


def legend() -> str:
    """What the badges of figures mean."""
    rows = "".join(
        f'<li><span class="badge {BADGES[standing]}">{standing}</span> {escape(means)}</li>'
        for standing, means in MEANINGS.items()
    )
    return f'<ul class="legend note">{rows}</ul>'
