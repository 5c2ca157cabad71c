"""A Ray cluster: how this process connects to it, whether it has room, and how a worker finds the driver's files."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

from excise.engine.stage import Needs
from excise.errors import ExciseError, MissingExtra

LOOK = 1.0
"""Seconds that one wait for the cluster lasts at most, so that Ctrl-C is noticed."""


def imported(module: str = "ray") -> Any:
    """Import Ray or a part of it with its usage statistics off, unless the user has set them.

    Raises MissingExtra without Ray, or without what that part needs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"the engine ray needs {module}, which is not installed: pip install 'excise[ray]'"
        ) from error


def connect(address: str) -> bool:
    """Connect to the cluster at `address`, or to the one that Ray finds, or start one here. Return False if it is done.

    Raises ExciseError if the cluster cannot be reached.
    """
    ray = imported()
    if ray.is_initialized():
        return False
    here = {} if address or os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
    try:
        ray.init(address=address or None, log_to_driver=False, logging_level="error", **here)
    except Exception as error:
        what = f"the Ray cluster at {address}" if address else "a Ray cluster"
        raise ExciseError(
            f"cannot connect to {what} ({type(error).__name__}: {str(error)[:300]}); check the address, and that "
            "Ray and Python have the same versions there"
        ) from error
    return True


def resources(needs: Needs) -> dict[str, float]:
    """Return what a worker reserves, by Ray's names."""
    wanted = {"CPU": needs.cpus or 1, "GPU": needs.gpus, "memory": needs.memory}
    return {kind: amount for kind, amount in wanted.items() if amount}


def check_room(needs: Needs, workers: int = 1) -> None:
    """Raise ExciseError if the nodes could never hold so many workers at once: Ray would wait without end."""
    wanted = resources(needs)
    nodes = [node["Resources"] for node in imported().nodes() if node["Alive"]]
    room = sum(min(int(node.get(kind, 0) // amount) for kind, amount in wanted.items()) for node in nodes)
    if room >= workers:
        return
    less = "start a larger node first, or ask for less (without a GPU: --device cpu)"
    if room:
        raise ExciseError(
            f"the Ray cluster has room for {room} workers at once, not for {workers}; each needs {_listed(wanted)}; "
            "start more nodes first, or ask for fewer workers"
        )
    raise ExciseError(
        f"no node of the Ray cluster has room for a worker, which needs {_listed(wanted)}; the largest has "
        f"{_listed({kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in wanted})}; {less}"
    )


def enter(folder: str) -> None:
    """Work in the driver's folder, so that paths mean the same. Raises ExciseError if a node does not have it."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise ExciseError(
            f"a node of the cluster has no folder {folder}; work in a folder that all nodes share"
        ) from error


def _listed(amounts: Mapping[str, float]) -> str:
    units = {"CPU": "CPU cores", "GPU": "GPUs", "memory": "bytes of memory"}
    return ", ".join(f"{amount:g} {units[kind]}" for kind, amount in amounts.items())
