"""Tiny pipelines with random weights, of the real classes of each family that Excise knows.

`build("sdxl")` makes a pipeline and `call("sdxl", pipe, "a gun")` runs all of it. `missing(family)` is the reason why a
family cannot be built here, and `options(family)` are its sizes. `body(encoder)` is the module with a CLIP's layers.
"""

from __future__ import annotations

from tests.tiny.encoders import body
from tests.tiny.families import FAMILIES, build, call, missing, options

__all__ = ["FAMILIES", "body", "build", "call", "missing", "options"]
