"""Ways to make an eraser, one file each."""

from __future__ import annotations

from excise.methods.base import Method, method
from excise.methods.catalogue import METHODS

__all__ = ["METHODS", "Method", "method"]
