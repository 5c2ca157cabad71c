"""Ways to make an eraser, one file each."""

from __future__ import annotations

from excise.methods.base import METHODS, Method, method

__all__ = ["METHODS", "Method", "method"]
