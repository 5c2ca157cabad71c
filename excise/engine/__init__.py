"""Engines: one stage over many items, in this process, in several, on a Ray cluster, or in a slice of an array job.

An item is done if and only if its one file exists, whichever engine made it. Nothing else is state, so any call may be
stopped and repeated, and several may work in one folder. `run` is the entry point; `make_all` needs every item.
"""

from __future__ import annotations

from excise.engine.engines import check_engine, is_first, is_here, is_on_ray, own_items
from excise.engine.failures import check_made, failed_in_words
from excise.engine.run import make_all, run
from excise.engine.stage import Needs, Outcome, Stage

__all__ = [
    "Needs", "Outcome", "Stage", "check_engine", "check_made", "failed_in_words", "is_first", "is_here",
    "is_on_ray", "make_all", "own_items", "run",
]  # fmt: skip
