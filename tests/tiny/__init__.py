"""Tiny pipelines with random weights, of the real classes of each family that Excise knows.

`build("sdxl")` makes one, `call("sdxl", pipe, "a gun")` runs all of it; `missing` says why a family cannot be built
here.
"""

from __future__ import annotations

from tests.tiny.families import FAMILIES, build, call, missing

__all__ = ["FAMILIES", "build", "call", "missing"]
