"""Workers that share a run: one that fails, dies, or is still at it when the others are through."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from excise.bench import run as run_module
from excise.bench import worker
from excise.bench.run import TRIES, Run, Unit
from excise.bench.worker import Unfinished, work
from excise.errors import ExciseError
from tests.processes import processes

UNITS = [Unit("snce", name) for name in ("axe", "bat", "cat", "dog")]
POISON = UNITS[1]
Doing = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", {"methods": ["snce"], "size": "quick"}, UNITS)


def doing(error: BaseException | None) -> Doing:
    """What stands for drawing a unit's pictures: it writes one record, or fails at the poisonous one."""

    def do(run: Run, claim: Any, *rest: Any) -> None:
        if claim.unit == POISON and error is not None:
            raise error
        claim.write([{"method": claim.unit.method, "case": claim.unit.concept}])

    return do


def at_work(run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> None:
    monkeypatch.setattr(worker, "_do", doing(error))
    work(run, None, lambda: "pipe", {})  # type: ignore[arg-type]


def test_a_poisonous_unit_is_tried_a_few_times_and_the_others_are_done(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [unit for unit in UNITS if unit != POISON]
    for n in range(TRIES):
        with pytest.raises(Unfinished, match=r"1 units are not done: snce on bat: RuntimeError: bad \(") as said:
            at_work(run, monkeypatch, RuntimeError("bad"))
        assert run.units("done") == others
        assert run.units("failed" if n == TRIES - 1 else "todo") == [POISON]
        assert run.units("doing") == []
    assert "set aside after 3 tries" in str(said.value)
    assert run.errors() == {POISON: ["RuntimeError: bad"] * TRIES}
    with pytest.raises(Unfinished, match="set aside"):
        at_work(run, monkeypatch, None)
    run.retry()
    at_work(run, monkeypatch, None)
    assert run.units("done") == UNITS
    assert run.errors() == {}


def test_ctrl_c_and_a_full_disk_end_the_worker_and_are_no_try(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    full = ExciseError("cannot write")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    for error in (KeyboardInterrupt(), full):
        with pytest.raises(type(error)) as raised:
            at_work(run, monkeypatch, error)
        assert raised.value is error
        assert (run.units("todo")[0], run.units("doing"), run.errors()) == (POISON, [], {})


def test_a_model_that_cannot_be_loaded_leaves_no_claim_behind(run: Run) -> None:
    def load() -> Any:
        raise ExciseError("no such model")

    with pytest.raises(ExciseError, match="no such model"):
        work(run, None, load, {})  # type: ignore[arg-type]
    assert (run.units("todo"), run.units("doing"), run.errors()) == (UNITS, [], {})


def die_at_the_poisonous_one(folder: Path) -> None:
    def do(run: Run, claim: Any, *rest: Any) -> None:
        if claim.unit == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        claim.write([{"method": claim.unit.method, "case": claim.unit.concept}])

    worker._do = do
    work(Run(folder), None, lambda: "pipe", {})  # type: ignore[arg-type]


def test_a_unit_that_kills_its_worker_does_not_kill_them_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(TRIES):
        process = processes().Process(target=die_at_the_poisonous_one, args=(run.folder,))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    with pytest.raises(Unfinished, match=r"snce on bat: its worker ended without an error .*set aside after 3 tries"):
        at_work(run, monkeypatch, None)
    assert run.units("done") == [unit for unit in UNITS if unit != POISON]


@pytest.fixture
def held(run: Run) -> Iterator[Path]:
    """The first unit, claimed by a worker on another machine."""
    (run.folder / "doing").mkdir()
    path = run.folder / "doing" / f"{UNITS[0].file}@elsewhere.0.1.1"
    os.utime(run.folder / "todo" / UNITS[0].file)
    (run.folder / "todo" / UNITS[0].file).rename(path)
    return path


@pytest.mark.usefixtures("held")
def test_the_last_worker_takes_over_what_a_dead_one_holds(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "STALE", 1.0)
    monkeypatch.setattr(worker, "LOOK", 0.1)
    at_work(run, monkeypatch, None)
    assert run.units("done") == UNITS


def test_a_worker_leaves_what_a_living_one_holds_to_it(run: Run, held: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LOOK", 0.05)
    over = threading.Event()

    def alive() -> None:
        while not over.wait(0.1):
            os.utime(held)

    thread = threading.Thread(target=alive)
    thread.start()
    try:
        at_work(run, monkeypatch, None)
    finally:
        over.set()
        thread.join()
    assert (run.units("doing"), run.units("done")) == (UNITS[:1], UNITS[1:])


def test_the_command_says_what_failed_and_exits_with_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from excise.app.bench.runs import report, start
    from excise.cli import app

    run = start(tmp_path / "run", "canvas", "quick", [], ["gun"], {"searches": False, "prompts": 1})

    def fail(*given: Any) -> None:
        raise RuntimeError("cuda is on fire")

    monkeypatch.setattr(worker, "_do", fail)
    told = CliRunner().invoke(app, ["bench", "resume", str(run.folder)])
    assert told.exit_code == 2
    assert "none on gun: RuntimeError: cuda is on fire (try 1 of 3)" in told.output
    assert report(run)["methods"]["none"]["failed"] == {"gun": "RuntimeError: cuda is on fire"}
    assert "not done, gun: RuntimeError: cuda is on fire" in (run.folder / "report.html").read_text()
    for _ in range(TRIES - 1):
        CliRunner().invoke(app, ["bench", "resume", str(run.folder)])
    assert run.units("failed") == [Unit("none", "gun")]
    told = CliRunner().invoke(app, ["bench", "resume", str(run.folder), "--retry"])
    assert "(try 1 of 3)" in told.output
