"""Ranks of one training that Ray Train starts on a cluster of this machine. `nox -s ray` runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from excise import files
from excise.engine import Needs
from excise.engine.ranks import run_ranks
from excise.errors import ExciseError, ItemsFailed
from excise.sae import Progress, load
from excise.sae.parallel import ALONE
from tests.engine.clusters import CLIENTS, cluster
from tests.engine.trainings import SLOW, Work, digest
from tests.sae.test_parallel import CONFIG, agree, trained

if find_spec("ray") is None:
    pytest.skip("ray is not installed: it is in the extra ray", allow_module_level=True)

__all__ = ["cluster"]


def received(work: Work) -> list[Any]:
    """Run two ranks to their end, and return their messages."""
    said: list[Any] = []
    run_ranks("ray", work, 2, needs=Needs(), received=said.append)
    return said


def cluster_cpus() -> float:
    import ray

    return float(ray.available_resources().get("CPU", 0))


def lines(said: list[Any]) -> list[Progress]:
    return [message for message in said if isinstance(message, Progress)]


def bits(said: list[Any]) -> dict[int, str]:
    return {message[1]: message[2] for message in said if message[0] == "bits"}


@pytest.mark.usefixtures("cluster")
class TestOnACluster:
    @pytest.mark.parametrize("division", [{"data": 2}, {"data": 1, "latents": 2}], ids=str)
    def test_two_ranks_train_what_one_process_does(self, tmp_path: Path, division: dict[str, int]) -> None:
        alone, _ = trained(ALONE, tmp_path / "alone", CONFIG)
        said = received(Work(str(tmp_path / "sae"), **division))
        agree(lines(said), alone)
        assert {message[1:] for message in said if message[0] == "began"} == {(0, os.getcwd()), (1, os.getcwd())}
        found = bits(said)
        assert set(found) == {0, 1}
        if division["data"] == 2:
            assert found[0] == found[1], "both ranks have the same bits"
        assert load(tmp_path / "sae").config.m == 256
        assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "sae"]

    def test_after_a_rank_was_killed_the_bits_are_the_undisturbed_ones(self, tmp_path: Path) -> None:
        undisturbed = received(Work(str(tmp_path / "whole"), config=SLOW))
        said = received(Work(str(tmp_path / "sae"), config=SLOW, killed_at=55))
        assert (tmp_path / "killed").exists()
        assert [message[1] for message in said if message[0] == "began"].count(1) == 2
        steps = [line.step for line in lines(said)]
        assert steps[steps.index(55) - 2 :][:4] == [45, 50, 55, 45], "it continues from the checkpoint of step 40"
        assert bits(said) == bits(undisturbed)
        weights = [(tmp_path / name / "sae.safetensors").read_bytes() for name in ("whole", "sae")]
        assert weights[0] == weights[1]
        assert digest(load(tmp_path / "sae")) == digest(load(tmp_path / "whole"))

    def test_what_a_user_can_fix_is_said_at_once_and_anything_else_after_new_starts(self, tmp_path: Path) -> None:
        said: list[Any] = []
        with pytest.raises(ExciseError, match=r"^the vectors are too few; give more$"):
            run_ranks("ray", Work(str(tmp_path / "sae"), fault="refused"), 2, needs=Needs(), received=said.append)
        assert [message[0] for message in said] == ["began", "began"], "none was started again"
        said.clear()
        work = Work(str(tmp_path / "sae"), fault="raised")
        with pytest.raises(ItemsFailed, match=r"^the training failed with RuntimeError: .*; repeat the command"):
            run_ranks("ray", work, 2, needs=Needs(), received=said.append, restarts=1)
        assert [message[0] for message in said] == ["began"] * 4
        assert cluster_cpus() == 2, "nothing holds on to the cluster"
        assert list(tmp_path.iterdir()) == []

    def test_more_ranks_than_a_cluster_has_room_for_are_refused(self, tmp_path: Path) -> None:
        for number, needs, says in (
            (3, Needs(), "has room for 2 workers at once, not for 3; each needs 1 CPU cores"),
            (2, Needs(gpus=1), "needs 1 CPU cores, 1 GPUs; the largest has 1 CPU cores, 0 GPUs"),
        ):
            with pytest.raises(ExciseError, match=says):
                run_ranks("ray", Work(str(tmp_path / "sae")), number, needs=needs, received=print)


class Command:
    """`excise sae train` of a tiny model on the cluster, by two ranks in a process of its own."""

    def __init__(self, folder: Path, model: Path, out: str, engine: str) -> None:
        (folder / "prompts.txt").write_text("a gun\na cat on grass\na dog in the sky\n")
        words: list[Any] = ["--model", model, "--site", "encoder.layers.1", "--prompts", "prompts.txt", "--out", out]
        words += ["--tokens", 231_000, "--expansion", 2, "--k", 4, "--parallel", "data=2", "--engine", engine, "--json"]
        self._running = subprocess.Popen(
            [sys.executable, "-m", "excise", "sae", "train", *map(str, words)],
            cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def stop_in_training(self) -> None:
        assert self._running.stderr is not None
        seen = []
        for line in self._running.stderr:
            seen.append(line)
            if line.startswith("training the SAE"):
                return self._running.send_signal(signal.SIGINT)
        raise AssertionError("".join(seen))

    def ended(self) -> tuple[int, str]:
        """Return the exit code, and what was written on standard error since `stop_in_training`."""
        _, errors = self._running.communicate(timeout=300)
        return self._running.returncode, errors


def test_a_command_trains_through_a_client_and_resumes_after_ctrl_c(
    cluster: Any, build_pipe: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_pipe().save_pretrained(tmp_path / "model")
    whole = Command(tmp_path, tmp_path / "model", "whole", CLIENTS)
    code, errors = whole.ended()
    assert code == 0 and "saved in whole" in errors, errors
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    stopped = Command(tmp_path, tmp_path / "model", "sae", "ray")
    stopped.stop_in_training()
    code, errors = stopped.ended()
    assert code == 130 and errors.splitlines()[-1].startswith("note: stopped; "), errors
    assert "Traceback" not in errors
    step = files.read_json(tmp_path / "sae.training" / "checkpoint" / "state.json")["step"]
    assert 0 < step < 1000 and not (tmp_path / "sae").exists()
    assert Command(tmp_path, tmp_path / "model", "sae", "ray").ended()[0] == 0
    weights = [(tmp_path / name / "sae.safetensors").read_bytes() for name in ("whole", "sae")]
    assert weights[0] == weights[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "prompts.txt", "sae", "whole"]
