"""Processes for tests, which need not import torch again."""

from __future__ import annotations

import multiprocessing
from typing import Any

import torch


def processes() -> Any:
    """Return a `multiprocessing` context. It forks where torch has one thread, as in `make test`, and else spawns.

    A fork of a process with OpenMP threads hangs in its first parallel loop.
    """
    return multiprocessing.get_context("fork" if torch.get_num_threads() == 1 else "spawn")
