"""Tiny pipelines with random weights, of the real classes of each family that Excise knows.

`build("sdxl")` makes one, `call("sdxl", pipe, "a gun")` runs all of it; `missing, options` says why a family cannot be
built here. `body(encoder)` is where a CLIP's layers are.
"""

from __future__ import annotations

from tests.tiny.encoders import body
from tests.tiny.families import FAMILIES, build, call, missing, options

__all__ = ["FAMILIES", "body", "build", "call", "missing", "options"]
