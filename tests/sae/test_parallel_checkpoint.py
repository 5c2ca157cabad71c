"""Checkpoints of a training on several ranks, and what ends it: every rank or none."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from excise import files
from excise.errors import ExciseError
from excise.sae import Progress, Shards, TopKSAE, TrainConfig, card, load, stream, train
from excise.sae.checkpoint import State
from excise.sae.data import Source
from excise.sae.parallel import ALONE, Mesh
from excise.sae.trainer import _digest, _start, _statistics
from tests.sae.ranks import answers, on_ranks, torchrun
from tests.sae.test_parallel import CONFIG as BASE
from tests.sae.test_parallel import D, features

CONFIG = dataclasses.replace(BASE, tokens=65 * 30, checkpoint_every=10, log_every=3)
Bits = dict[str, torch.Tensor]


def finished(mesh: Mesh, out: Path, stop: int = 0, config: TrainConfig = CONFIG, sharded: bool = False) -> Bits:
    """Train; rank 0 asks to stop as Ctrl-C does after step `stop`."""

    def progress(line: Progress) -> None:
        if line.step == stop:
            signal.raise_signal(signal.SIGINT)

    stream.BUFFER = 200 if sharded else 1 << 17
    vectors = Shards.of(features().split(70)) if sharded else features()
    sae = train(vectors, config, out, mesh=mesh, progress=progress)
    return {name: value.detach().clone() for name, value in sae.state_dict().items()}


def same(one: Bits, other: Bits) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def restored(mesh: Mesh, out: Path) -> tuple[Bits, torch.Tensor]:
    """Return the state that a mesh takes from a checkpoint, and the codes of its latents."""
    source = Source(features(), seed=CONFIG.seed)
    statistics = _statistics(source, mesh)
    state = _start(CONFIG.sae(D), CONFIG, statistics, statistics.variance**0.5, torch.device("cpu"), None, mesh)
    folder = out.with_name(out.name + ".training") / "checkpoint"
    assert state.restore(folder, CONFIG, _digest(source.digest(statistics), None, None, b""))
    assert state.step == 12
    codes = state.sae.encode(features()[:50])
    dense = torch.zeros(50, len(state.sae.W_enc)).scatter_add(1, codes.indices, codes.values.detach())
    return {name: value.detach().clone() for name, value in state._tensors().items()}, dense


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that two ranks, which divide the latents, stopped after step 12."""
    out = tmp_path_factory.mktemp("stopped") / "sae"
    found = answers((1, 2), finished, out.with_name("store"), out, 12)
    assert [error[0] for _, error in found] == ["KeyboardInterrupt", "KeyboardInterrupt"]
    names = sorted(path.name for path in (out.parent / "sae.training" / "checkpoint").iterdir())
    assert names == ["state-0-of-2.safetensors", "state-1-of-2.safetensors", "state.json"]
    assert not out.exists()
    return out


def test_another_number_of_ranks_takes_the_same_state(stopped: Path, tmp_path: Path) -> None:
    known, codes = restored(ALONE, stopped)
    for sizes in ((1, 2), (1, 3), (2, 2)):
        found = on_ranks(sizes, restored, tmp_path / f"store{sizes}", stopped)
        for rank, (bits, own) in enumerate(found):
            rows = Mesh(*sizes, rank).rows(8 * D)
            torch.testing.assert_close(own, codes[:, rows])
            for name, value in known.items():
                divided = value.shape[:1] == (8 * D,)
                assert torch.equal(bits[name], value[rows] if divided else value), name
    assert {name for name in known if known[name].shape[:1] == (8 * D,)} >= {"sae.W_dec", "adam.1.exp_avg_sq", "idle"}


def test_ranks_continue_to_the_bits_of_an_undisturbed_run(stopped: Path, tmp_path: Path) -> None:
    undisturbed = on_ranks((1, 2), finished, tmp_path / "store", tmp_path / "whole")
    shutil.copytree(stopped.parent / "sae.training", tmp_path / "sae.training")
    continued = on_ranks((1, 2), finished, tmp_path / "again", tmp_path / "sae")
    assert all(same(bits, undisturbed[0]) for bits in continued)
    steps = [json.loads(line)["step"] for line in (tmp_path / "sae" / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(3, 31, 3))
    assert not (tmp_path / "sae.training").exists()


@pytest.mark.parametrize("sizes", [(2, 1), (2, 2)], ids=str)
def test_ranks_continue_within_an_epoch_of_shards(tmp_path: Path, sizes: tuple[int, int]) -> None:
    """An epoch has 13 batches in five windows; step 21 is in the middle of one."""
    undisturbed = on_ranks(sizes, finished, tmp_path / "store", tmp_path / "whole", 0, CONFIG, True)
    found = answers(sizes, finished, tmp_path / "one", tmp_path / "sae", 21, CONFIG, True)
    assert {error[0] for _, error in found} == {"KeyboardInterrupt"}
    continued = on_ranks(sizes, finished, tmp_path / "two", tmp_path / "sae", 0, CONFIG, True)
    assert all(same(bits, undisturbed[0]) for bits in continued)


def test_one_process_finishes_what_two_began_and_the_other_way_round(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped.parent / "sae.training", tmp_path / "sae.training")
    with pytest.raises(KeyboardInterrupt):
        finished(ALONE, tmp_path / "sae", stop=21)
    names = sorted(path.name for path in (tmp_path / "sae.training" / "checkpoint").iterdir())
    assert names == ["state.json", "state.safetensors"]
    on_ranks((2, 1), finished, tmp_path / "store", tmp_path / "sae")
    finished(ALONE, tmp_path / "alone")
    fvu = [card(tmp_path / name)["metrics"]["train"]["fvu"] for name in ("sae", "alone")]
    assert fvu[0] == pytest.approx(fvu[1], rel=1e-4)


def killed(mesh: Mesh, out: Path) -> None:
    """Train; the last rank is killed, as by the system, after step 24."""

    def progress(line: Progress) -> None:
        if line.step == 24:
            os.kill(victim, signal.SIGKILL)

    victim = int(mesh.texts(str(os.getpid()))[-1])
    train(features(), CONFIG, out, mesh=mesh, progress=progress)


def test_after_the_kill_of_a_rank_the_training_continues_to_the_same_bits(tmp_path: Path) -> None:
    undisturbed = on_ranks((2, 1), finished, tmp_path / "store", tmp_path / "whole")[0]
    ended = answers((2, 1), killed, tmp_path / "store1", tmp_path / "sae")
    assert [done for done, _ in ended] == [False, False]
    assert ended[0][1][0] == "RuntimeError" and ended[1][1] == ("it was killed",), "rank 0 does not wait for it"
    assert files.read_json(tmp_path / "sae.training" / "checkpoint" / "state.json")["step"] == 20
    assert same(on_ranks((2, 1), finished, tmp_path / "store2", tmp_path / "sae")[0], undisturbed)


def interrupted(mesh: Mesh, out: Path) -> None:
    """Train; Ctrl-C reaches the last rank alone."""
    advance = trainer_module()._advance

    def press(state: State, *rest: Any) -> None:
        advance(state, *rest)
        if state.step == 17 and mesh.rank == mesh.size - 1:
            signal.raise_signal(signal.SIGINT)

    trainer_module()._advance = press
    train(features(), CONFIG, out, mesh=mesh)


def trainer_module() -> Any:
    import excise.sae.trainer

    return excise.sae.trainer


def test_ctrl_c_in_one_rank_stops_all_after_the_same_step(tmp_path: Path) -> None:
    found = answers((2, 2), interrupted, tmp_path / "store", tmp_path / "sae")
    assert [error[0] for _, error in found] == ["KeyboardInterrupt"] * 4
    state = files.read_json(tmp_path / "sae.training" / "checkpoint" / "state.json")
    assert state["step"] == 17 and state["ranks"] == {"data": 2, "latents": 2}


def refused(mesh: Mesh, out: Path, how: str) -> None:
    """Train, with one thing that goes wrong on one rank."""
    config, x, given = CONFIG, features(), dict[str, Any]()
    if how == "disk" and mesh.rank == 1:
        write = files.write_atomic

        def full(path: Path, data: bytes | str) -> None:
            if "state-1-of-2" in path.name:
                raise ExciseError("cannot write: no space left")
            write(path, data)

        files.write_atomic = full
    elif how == "vectors" and mesh.rank == 0:
        x[7, 3] = float("nan")
    elif how == "diverges":
        x, config = x * 1e30, dataclasses.replace(config, units="raw")
    elif how == "measure":
        given["measure"] = lambda sae: {"more": 1 / 0}
    elif how == "stop":

        def stop(sae: TopKSAE) -> dict[str, Any]:
            raise KeyboardInterrupt

        given["measure"] = stop
    elif how == "elsewhere" and mesh.rank == 1:
        out = out.parent / "other disk" / "sae"
    elif how == "labels":
        given["supervision"], config = object(), dataclasses.replace(config, activation="batchtopk")
    elif how == "batch":
        config = dataclasses.replace(config, batch=1)
    train(x, config, out, mesh=mesh, **given)


@pytest.mark.parametrize(
    ("sizes", "how", "first", "second"),
    [
        ((1, 2), "disk", "no space left (on rank 1)", "no space left"),
        ((1, 2), "vectors", "NaN or infinity", "NaN or infinity; capture them again, in float32 (on rank 0)"),
        ((2, 1), "diverges", "training diverged", "training diverged"),
        ((2, 1), "measure", "division by zero", "division by zero (on rank 0)"),
        ((2, 1), "labels", "'topk' alone; choose it", "'topk' alone; choose it"),
        ((2, 1), "batch", "a batch of 1 cannot be divided among 2 ranks", "a batch of 1 cannot"),
    ],
)
def test_what_fails_on_one_rank_ends_all(
    tmp_path: Path, sizes: tuple[int, int], how: str, first: str, second: str
) -> None:
    found = answers(sizes, refused, tmp_path / "store", tmp_path / "sae", how)
    assert [done for done, _ in found] == [False, False]
    assert first in found[0][1][1] and second in found[1][1][1]
    assert not (tmp_path / "sae").exists()


def test_ctrl_c_while_rank_0_measures_is_ctrl_c_on_all(tmp_path: Path) -> None:
    found = answers((2, 1), refused, tmp_path / "store", tmp_path / "sae", "stop")
    assert [error[0] for _, error in found] == ["KeyboardInterrupt", "KeyboardInterrupt"]
    on_ranks((2, 1), finished, tmp_path / "store2", tmp_path / "sae")


def test_ranks_that_see_different_disks_are_refused(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped.parent / "sae.training", tmp_path / "sae.training")
    found = answers((1, 2), refused, tmp_path / "store", tmp_path / "sae", "elsewhere")
    assert all("not all ranks see" in error[1] for _, error in found)


@pytest.mark.parametrize("damage", ["missing", "short", "swapped", "unlisted", "changed"])
def test_a_checkpoint_with_a_damaged_part_is_refused(stopped: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(stopped.parent / "sae.training", tmp_path / "sae.training")
    folder = tmp_path / "sae.training" / "checkpoint"
    part = folder / "state-1-of-2.safetensors"
    if damage == "missing":
        part.unlink()
    elif damage == "changed":
        data = bytearray(part.read_bytes())
        data[-1] ^= 1
        part.write_bytes(data)
    elif damage == "short":
        part.write_bytes(part.read_bytes()[:-4])
    else:
        about = json.loads((folder / "state.json").read_text())
        about["parts"].reverse() if damage == "swapped" else about["parts"].pop()
        (folder / "state.json").write_text(json.dumps(about))
    with pytest.raises(ExciseError, match=r"damaged .*start again"):
        finished(ALONE, tmp_path / "sae")


def test_a_checkpoint_of_the_version_before_continues(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        finished(ALONE, tmp_path / "sae", stop=12)
    path = tmp_path / "sae.training" / "checkpoint" / "state.json"
    state = json.loads(path.read_text())
    state |= {"schema": "excise.sae.checkpoint/2", "sha256": state.pop("parts")[0]["sha256"]}
    del state["ranks"]
    path.write_text(json.dumps(state))
    continued = finished(ALONE, tmp_path / "sae")
    assert same(continued, finished(ALONE, tmp_path / "whole"))
    assert same(continued, dict(load(tmp_path / "sae").state_dict()))


SCRIPT = """
import os, signal, sys
from pathlib import Path
from excise.sae import Mesh, train
from tests.sae.test_parallel_checkpoint import CONFIG, features

out, how = Path(sys.argv[1]), sys.argv[2]
mesh = Mesh.join(data=2)
pids = mesh.texts(str(os.getpid()))

def progress(line):
    if how == "kill" and line.step == 24 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(int(pids[1]), signal.SIGKILL)
    if how == "stop" and line.step == 15:
        os.kill(os.getppid(), signal.SIGINT)

print("began", os.environ["TORCHELASTIC_RESTART_COUNT"], flush=True)
train(features(), CONFIG, out, mesh=mesh, progress=progress)
mesh.leave()
"""


@pytest.mark.slow
def test_torchrun_restarts_what_was_killed_and_passes_ctrl_c_on(tmp_path: Path) -> None:
    """Killed in step 24 of 30 with a checkpoint of step 20: the weights are those of an undisturbed run, to the bit."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(name: str, how: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
        return torchrun(tmp_path / "script.py", tmp_path / name, how, number=2, restarts=restarts)

    assert run("whole", "").returncode == 0
    killed = run("killed", "kill", restarts=1)
    assert killed.returncode == 0, killed.stderr
    assert killed.stdout.split().count("began") == 4, "both ranks began twice"
    stopped = run("stopped", "stop")
    assert stopped.returncode != 0
    step = files.read_json(tmp_path / "stopped.training" / "checkpoint" / "state.json")["step"]
    assert (step > 10 and step % 10) or step == 20, "a checkpoint of its own"
    assert run("stopped", "").returncode == 0
    weights = [(tmp_path / name / "sae.safetensors").read_bytes() for name in ("whole", "killed", "stopped")]
    assert weights[0] == weights[1] == weights[2]
