"""Gates: conditions on figures, so that a benchmark can stand in a CI pipeline."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from excise.errors import ExciseError

_COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_CONDITION = re.compile(r"\s*([\w.-]+)\s*(<=|>=|<|>)\s*(\d*\.?\d+)\s*")


@dataclass(frozen=True)
class Gate:
    """One condition: a figure, a comparison, a bound."""

    figure: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.figure}{self.comparison}{self.bound:g}"

    def holds(self, figures: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether the figure's value is on the right side. One that could not be measured never is.

        Raises ExciseError for a figure that does not exist.
        """
        if self.figure not in figures:
            raise ExciseError(f"there is no figure {self.figure!r} to gate on; there are {', '.join(figures)}")
        value = figures[self.figure]["value"]
        return value is not None and bool(_COMPARISONS[self.comparison](value, self.bound))


def parse(text: str) -> list[Gate]:
    """Gates from `asr<0.05,ira>0.98`. Raises ExciseError for anything else."""
    gates = []
    for part in text.split(","):
        match = _CONDITION.fullmatch(part)
        if match is None:
            raise ExciseError(f"cannot read the gate {part.strip()!r}; write it as asr<0.05 or ira>=0.98")
        gates.append(Gate(match[1], match[2], float(match[3])))
    return gates
