"""The numbers that methods' settings take, by a setting's name.

The upper bounds stop slips of the keyboard before any work; honest work does not come near them. What a method alone
asks of a setting is checked by its configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from excise.errors import ExciseError

MOST = 1_000_000
"""The largest magnitude of a setting that is not named below."""
SIGNED = {"gamma": -1000, "factor": -1000, "threshold": -1, "warmup": -1, "margin": -10}
"""The least value of settings that may be negative."""
GREATEST = {
    "steps": 1000,
    "warmup": 1000,
    "timesteps": 1000,
    "guidance": 100,
    "percentile": 100,
    "tolerance": 1,
    "lr": 1,
    "attack_lr": 1,
    "alpha_lr": 1,
    "margin": 10,
    "gamma": 1000,
    "neurons": 2**31 - 1,
    "seed": 2**32 - 1,
}
"""The greatest value. A training multiplies its seed, and the products have to fit into 64 bits."""


def check_numbers(method: str, settings: Mapping[str, Any]) -> None:
    """Raise ExciseError for a number that is not finite or outside of its bounds.

    A joined method's settings bear their method's name and a dot (`snce.k`); one that is no number is left alone.
    """
    for name, value in settings.items():
        own = name.rpartition(".")[2]
        least, most = SIGNED.get(own, 0), GREATEST.get(own, MOST)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if not (math.isfinite(number) and least <= number <= most):
                raise ExciseError(f"{method}: {name} is {number}; it lies between {least} and {most}")
