"""The engine `ray` on a cluster of this machine: what every engine promises, and the loss of a whole node.

`nox -s ray` runs it. Every socket stays on 127.0.0.1.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from excise.engine import Needs, Outcome, run
from excise.errors import ExciseError
from tests.engine.clusters import CLIENTS, SETTINGS, cluster, short_folder
from tests.engine.stages import Arrays, expected

if find_spec("ray") is None:
    pytest.skip("ray is not installed: it is in the extra ray", allow_module_level=True)

__all__ = ["cluster"]
N = 6


def by_item(outcomes: list[Outcome[int]]) -> dict[int, Outcome[int]]:
    assert sorted(outcome.item for outcome in outcomes) == list(range(N))
    return {outcome.item: outcome for outcome in outcomes}


@pytest.mark.usefixtures("cluster")
class TestOnACluster:
    def test_the_same_bytes_and_a_second_call_makes_nothing(self, tmp_path: Path) -> None:
        stage = Arrays(str(tmp_path), sleeping=0.2)
        made = by_item(list(run("ray", stage, range(N), workers=2)))
        assert {outcome.state for outcome in made.values()} == {"made"}
        assert stage.contents(N) == expected(N)
        assert len(stage.opened()) in (1, 2), "each worker opens the stage once, if it is in time"
        assert {threads for _, threads, _ in stage.opened()} == {"1"}
        assert {outcome.state for outcome in run("ray", stage, range(N))} == {"kept"}
        assert len(stage.begun()) == N
        assert sys.modules["ray"].is_initialized(), "a connection that was there stays"

    def test_items_that_raise_end_or_lose_their_worker(self, tmp_path: Path) -> None:
        stage = Arrays(str(tmp_path / "made"), raising=1, ending=3, killed_once=2, refusing=4)
        made = by_item(list(run("ray", stage, range(N), workers=2, failures=tmp_path / "failures")))
        assert {item: (o.state, o.tries) for item, o in made.items()} == {
            0: ("made", 1),
            1: ("failed", 1),
            2: ("made", 2),
            3: ("failed", 3),
            4: ("failed", 1),
            5: ("made", 1),
        }
        assert [made[item].error for item in (1, 3, 4)] == ["RuntimeError", "Lost", "ExciseError"]
        assert made[1].why == "failed with RuntimeError: CUDA error: out of memory"
        assert stage.contents(N) == expected(N, without=(1, 3, 4))
        assert sorted(path.name for path in (tmp_path / "failures").iterdir()) == ["item-1.json", "item-3.json"]

    @pytest.mark.parametrize(
        ("how", "says"),
        [("refused", "^the model is not there"), ("raised", "^no worker could start"), ("killed", "lost")],
    )
    def test_workers_that_cannot_open_the_stage_blame_no_item(self, how: str, says: str, tmp_path: Path) -> None:
        stage = Arrays(str(tmp_path), unopened=how)
        with pytest.raises(ExciseError, match=says):
            list(run("ray", stage, range(N), workers=2, failures=tmp_path / "failures"))
        assert stage.begun() == []

    def test_a_worker_that_no_node_has_room_for_is_refused(self, tmp_path: Path) -> None:
        stage = Arrays(str(tmp_path))
        with pytest.raises(ExciseError, match="needs 1 CPU cores, 1 GPUs; the largest has 1 CPU cores, 0 GPUs"):
            list(run("ray", stage, range(N), needs=Needs(gpus=1)))
        with pytest.raises(ExciseError, match="needs 5 CPU cores; the largest has 1 CPU cores"):
            list(run("ray", stage, range(N), needs=Needs(cpus=5)))
        assert stage.opened() == []

    def test_every_socket_is_on_loopback(self) -> None:
        psutil = pytest.importorskip("psutil")
        own = {process.pid for process in psutil.Process().children(recursive=True)}
        assert own
        listening = [c for c in psutil.net_connections("inet") if c.status == "LISTEN" and c.pid in own]
        assert listening
        assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} <= {"127.0.0.1", "::1"}

    def test_another_node_makes_what_a_lost_node_had(self, cluster: Any, tmp_path: Path) -> None:
        node = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", object_store_memory=100 << 20)
        stage = Arrays(str(tmp_path), sleeping=1.0)

        def lose() -> None:
            while len(stage.begun()) < 3:
                time.sleep(0.05)
            cluster.remove_node(node, allow_graceful=False)

        losing = threading.Thread(target=lose)
        losing.start()
        made = by_item(list(run("ray", stage, range(N), workers=3)))
        losing.join()
        assert {outcome.state for outcome in made.values()} <= {"made", "kept"}
        assert sorted(outcome.tries for outcome in made.values()) == [1, 1, 1, 1, 1, 2]
        assert stage.contents(N) == expected(N)

    def test_a_client_makes_them_too(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", DRIVER, str(tmp_path), CLIENTS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.stdout.splitlines()[0] == " ".join(["made"] * 6), done.stderr[-2000:]
        assert Arrays(str(tmp_path / "made")).contents(N) == expected(N)


DRIVER = """
import os, sys
from excise.engine import run
from tests.engine.stages import Arrays

if __name__ == "__main__":
    os.chdir(sys.argv[1])
    print(*sorted(outcome.state for outcome in run(sys.argv[2], Arrays("made"), range(6), workers=2)))
    import ray
    print(ray.is_initialized(), os.environ["RAY_USAGE_STATS_ENABLED"])
"""


@pytest.mark.slow
def test_without_an_address_it_starts_a_cluster_here_and_ends_it(tmp_path: Path) -> None:
    settings = {name: value for name, value in SETTINGS.items() if name != "RAY_USAGE_STATS_ENABLED"}
    command = [sys.executable, "-c", DRIVER, str(tmp_path), "ray"]
    with short_folder() as folder:
        environment = {**os.environ, **settings, "RAY_TMPDIR": folder}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [" ".join(["made"] * 6), "False 0"], done.stderr[-2000:]
    assert Arrays(str(tmp_path / "made")).contents(N) == expected(N)
