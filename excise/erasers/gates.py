"""The step at which a gate opens, and the gradients that a white-box attack may use instead of its own.

A gate passes a value where a level is above a bound. That step has no gradient: a search that follows gradients does
not learn how to close the gate, and an eraser that is only never asked looks robust (Athalye et al. 2018, Obfuscated
Gradients Give a False Sense of Security). Within `attacking`, the result stays the same to the bit, and its gradient
is another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Gradient = Literal["exact", "hinge", "straight-through", "soft"]
"""The step's gradient in an attack: its own (exact); its own, while the search also lowers the levels (hinge); that of
an open gate (straight-through); that of a sigmoid in the step's place (soft, BPDA)."""
WIDTH = 0.1
"""Width of the sigmoid, as a share of the bound."""
_TINY = 1e-6


@dataclass
class Gates:
    """The gates that ran within `attacking`."""

    gradient: Gradient
    excess: list[Tensor] = field(default_factory=list)
    """For each run of a gate, its largest level divided by the bound, less 1: above 0 if it opened."""


_ATTACKED: ContextVar[Gates | None] = ContextVar("excise_gates", default=None)


@contextmanager
def attacking(gradient: Gradient) -> Iterator[Gates]:
    """Within this context, replace the gradients of all gates, and record how far each is from closing."""
    gates = Gates(gradient)
    token = _ATTACKED.set(gates)
    try:
        yield gates
    finally:
        _ATTACKED.reset(token)


def passed(value: Tensor, level: Tensor, bound: Tensor, *, equal: bool = False) -> Tensor:
    """Return `value` where `level` is above `bound` (or equal to it, with `equal`), else exactly 0.

    The three must be broadcastable. Within `attacking`, the gradient is `surrogate`'s.
    """
    opened = level >= bound if equal else level > bound
    return surrogate(torch.where(opened, value, torch.zeros_like(value)), value, level, bound)


def surrogate(hard: Tensor, value: Tensor, level: Tensor, bound: Tensor) -> Tensor:
    """Return `hard`, what a gate passed of `value`. Within `attacking`, its gradient is another one.

    With s(x) = 1 / (1 + exp(-x)), it is that of `value` (straight-through), or of
    value * s((level - bound) / (WIDTH * |bound|)) (soft).
    """
    if not torch.is_grad_enabled() or (gates := _ATTACKED.get()) is None:
        return hard
    scale = bound.abs().clamp(min=_TINY)
    gates.excess.append(((level - bound) / scale).amax())
    if gates.gradient == "straight-through":
        return smooth(hard, value)
    if gates.gradient == "soft":
        return smooth(hard, value * torch.sigmoid((level - bound) / (WIDTH * scale)))
    return hard


def smooth(hard: Tensor, soft: Tensor) -> Tensor:
    """Return `hard`; within `attacking` with another gradient than the gates' own, with the gradient of `soft`."""
    gates = _ATTACKED.get() if torch.is_grad_enabled() else None
    if gates is None or gates.gradient not in ("straight-through", "soft"):
        return hard
    return hard.detach() + (soft - soft.detach())
