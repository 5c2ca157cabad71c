"""Ways to make an eraser, one file each."""

from __future__ import annotations

from excise.methods.base import Method
from excise.methods.catalogue import METHODS
from excise.methods.lookup import method

__all__ = ["METHODS", "Method", "method"]
