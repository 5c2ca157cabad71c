"""Gates: pass/fail conditions on figures, for CI pipelines."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from excise.errors import ExciseError
from excise.statistics import behind

_COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_CONDITION = re.compile(r"\s*([\w.-]+)\s*(<=|>=|<|>)\s*(\d*\.?\d+)\s*")


On = Literal["bound", "point"]
"""What a gate compares: the worse end of the figure's 95 % interval, or its value alone."""


@dataclass(frozen=True)
class Gate:
    """Condition on a figure: a comparison with a bound."""

    figure: str
    comparison: str
    bound: float
    on: On = "bound"

    def __str__(self) -> str:
        return f"{self.figure}{self.comparison}{self.bound:g}"

    def holds(self, figures: Mapping[str, Mapping[str, Any]]) -> bool:
        """Return whether the figure passes, by the worse end of its interval or by its value alone.

        A figure that could not be measured never passes. One without an interval (a count, a distance) is compared by
        its value. Raises ExciseError for a figure that does not exist.
        """
        return self._compares(self._of(figures)["value"] if self.on == "point" else self._worse(figures))

    def missed(self, figures: Mapping[str, Mapping[str, Any]]) -> str:
        """Explain in one line why the gate is missed."""
        figure, worse = self._of(figures), self._worse(figures)
        if figure["value"] is None:
            return f"{self} is missed: the figure could not be measured"
        if not self._compares(figure["value"]):
            return f"{self} is missed: the value is {figure['value']} (n {behind(figure)})"
        return (
            f"{self} is missed: the value {figure['value']} passes, but the end of its 95 % interval, {worse}, does "
            f"not (n {behind(figure)}); measure more, or gate on the value with --gate-on point"
        )

    def _compares(self, value: float | None) -> bool:
        return value is not None and bool(_COMPARISONS[self.comparison](value, self.bound))

    def _of(self, figures: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
        if self.figure not in figures:
            raise ExciseError(f"unknown figure {self.figure!r} in a gate; choose one of {', '.join(figures)}")
        return figures[self.figure]

    def _worse(self, figures: Mapping[str, Mapping[str, Any]]) -> float | None:
        """Return the end of the interval nearer to the wrong side."""
        figure = self._of(figures)
        end: float | None = figure.get("high" if self.comparison.startswith("<") else "low")
        return figure["value"] if end is None or figure["value"] is None else end


def parse(text: str, on: str = "bound") -> list[Gate]:
    """Parse gates such as `asr<0.05,ira>0.98`, on the "bound" or the "point". Raises ExciseError for anything else."""
    gates = []
    by: On = "point" if on == "point" else "bound"
    if on != by:
        raise ExciseError(f"--gate-on cannot be {on!r}; choose bound or point")
    for part in text.split(","):
        match = _CONDITION.fullmatch(part)
        if match is None:
            raise ExciseError(f"cannot read the gate {part.strip()!r}; write it as asr<0.05 or ira>=0.98")
        gates.append(Gate(match[1], match[2], float(match[3]), by))
    return gates
