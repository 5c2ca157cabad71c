"""A Ray cluster of this machine for tests. Every socket stays on 127.0.0.1."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PORT = 20_000 + os.getpid() % 10_000
CLIENTS = f"ray://127.0.0.1:{PORT}"
"""Where the head takes clients."""
SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keep 127.0.0.1, which Ray replaces by the machine's address
    "RAY_AUTH_MODE": "disabled",  # write no token into the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONPATH": str(ROOT),
}


@contextmanager
def short_folder() -> Iterator[str]:
    """A folder for Ray's sockets, whose names may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "ray").mkdir()
        yield folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without workers and two nodes of one core."""
    with pytest.MonkeyPatch.context() as patch, short_folder() as folder:
        for name, value in {**SETTINGS, "RAY_TMPDIR": folder}.items():
            patch.setenv(name, value)
        import ray  # it reads these settings when it is imported
        from ray.cluster_utils import Cluster

        made = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "node_ip_address": "127.0.0.1",
                "include_dashboard": False,
                "ray_client_server_port": PORT,
            },
        )
        try:
            # The driver connects while the head is alone: it would end with any other node.
            ray.init(address=made.address, log_to_driver=False, logging_level="error")
            for _ in range(2):
                made.add_node(num_cpus=1, node_ip_address="127.0.0.1", object_store_memory=100 << 20)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()
