"""Runs in an object store: machines without a shared disk see each other's items, whatever happens to one of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from excise.bench.items import blocks
from excise.bench.items.work import Unfinished, work
from excise.bench.run import Run, Unit
from excise.errors import ExciseError
from tests.bench.test_work import CONCEPTS, UNITS, Opening, Small, burn, kill, stub
from tests.remote.conftest import URL
from tests.remote.s3_server import Store

PLAN = {"methods": ["none"], "concepts": list(CONCEPTS), "size": "quick"}


@pytest.fixture(autouse=True)
def _without_a_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch.setattr)


def at_work(run: Run, folder: Path, poison: str = "", how: Callable[[], None] = burn, **options: Any) -> None:
    folder.mkdir(exist_ok=True)
    opening = Opening(str(folder), poison, how)
    work(run, Small(str(folder)), lambda: {"poison": poison, "how": how}, {}, opening=opening, **options)


def machine(folder: str, poison: str, how: Callable[[], None], engine: str | None) -> None:
    """Begin or resume the run, as a process of a machine of its own."""
    stub()
    at_work(Run.create(URL, PLAN), Path(folder), poison, how, engine=engine)


def started(folder: Path, poison: str = "", how: Callable[[], None] = burn, engine: str | None = None) -> Any:
    process = multiprocessing.get_context("spawn").Process(target=machine, args=(str(folder), poison, how, engine))
    process.start()
    return process


def content(run: Run) -> dict[str, Any]:
    """Return the files of a run by name: their bytes, or of a block the records without times, and the pictures."""
    found: dict[str, Any] = {}
    for path in sorted(run.folder.rglob("*")):
        name = path.relative_to(run.folder).as_posix()
        if path.suffix == ".zip":
            records = [
                {k: v for k, v in row.items() if k not in ("seconds", "reused")} for row in blocks.read_records(path)
            ]
            found[name] = records, [blocks.read_picture(path, row["case"]) for row in records]
        elif path.is_file() and path.parent.name not in ("fits", "checked"):  # they hold times, or what was reused
            found[name] = path.read_bytes()
        elif path.is_file():
            found[name] = sorted(json.loads(path.read_bytes()))
    return found


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("engine", [None, "processes:2"])
def test_a_run_in_a_store_has_the_files_of_one_on_a_disk(tmp_path: Path, engine: str | None) -> None:
    disk = Run.create(tmp_path / "run", PLAN)
    at_work(disk, tmp_path / "here")
    run = Run.create(URL, PLAN)
    at_work(run, tmp_path / "there", engine=engine)
    assert run.units("done") == UNITS
    other = Run(URL)
    assert other.folder != run.folder
    assert content(other) == content(disk)
    at_work(other, tmp_path / "again")
    assert not (tmp_path / "again" / "log").exists(), "nothing is made twice"


@pytest.mark.usefixtures("bucket")
def test_two_machines_share_a_run_and_a_third_reads_it(tmp_path: Path) -> None:
    machines = [started(tmp_path / f"{n}", engine=f"slice:{n}/2") for n in range(2)]
    for process in machines:
        process.join(120)
    assert [process.exitcode for process in machines] == [0, 0]
    run = Run(URL)
    assert run.units("done") == UNITS
    disk = Run.create(tmp_path / "run", PLAN)
    at_work(disk, tmp_path / "here")
    assert content(run) == content(disk)


@pytest.mark.usefixtures("bucket")
def test_a_machine_that_is_lost_leaves_what_it_finished(tmp_path: Path) -> None:
    process = started(tmp_path / "lost", "a bat", kill)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    run = Run(URL)
    assert run.units("done") == UNITS[:1]
    assert len(run.records(UNITS[1])) == 16, "its first block"
    at_work(run, tmp_path / "other")
    assert run.units("done") == UNITS
    assert "search axe" not in Small(str(tmp_path / "other")).log()


@pytest.mark.usefixtures("bucket")
def test_a_machine_knows_what_another_failed_at_and_retry_forgets_it(tmp_path: Path) -> None:
    owner = zlib.crc32(f"draw-{UNITS[1].file}-00001".encode()) % 2
    with pytest.raises(Unfinished) as said:
        at_work(Run.create(URL, PLAN), tmp_path / "one", "a bat", engine=f"slice:{owner}/2")
    assert f"details in {URL}/failures; try them again with `excise bench resume {URL} --retry`" in str(said.value)
    at_work(Run(URL), tmp_path / "other", "a bat", engine=f"slice:{1 - owner}/2")
    assert not (tmp_path / "other" / "log").exists() or "a bat" not in Small(str(tmp_path / "other")).log()
    run = Run(URL)
    assert list(run.errors().values()) == [["failed with RuntimeError: cuda is on fire"]]
    assert run.retry() == [Unit("none", "bat")]
    assert Run(URL).errors() == {}
    at_work(Run(URL), tmp_path / "third")
    assert Run(URL).units("done") == UNITS


def test_a_store_that_fails_ends_the_work_and_nothing_is_set_aside(store: Store, tmp_path: Path) -> None:
    run = Run.create(URL, PLAN)
    made = len(store.files())

    def lose(method: str, path: str) -> None:
        if "00001.zip" in path and method == "POST":
            store.closed = True

    store.told = lose
    with pytest.raises(ExciseError, match=f"cannot write {URL} .*the network"):
        at_work(run, tmp_path / "here")
    assert len(store.files()) > made
    store.closed, store.told = False, lambda method, path: None
    later = Run(URL)
    assert later.errors() == {}
    assert len(later.records()) == 16
    at_work(later, tmp_path / "later")
    assert Run(URL).units("done") == UNITS


@pytest.mark.usefixtures("bucket")
def test_ctrl_c_keeps_the_finished_blocks(tmp_path: Path) -> None:
    def stop() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        at_work(Run.create(URL, PLAN), tmp_path / "here", "a bat", stop)
    run = Run(URL)
    assert (run.units("done"), len(run.records(UNITS[1]))) == (UNITS[:1], 16)


@pytest.mark.usefixtures("bucket")
def test_another_run_and_other_files_are_refused() -> None:
    Run.create(URL, PLAN)
    with pytest.raises(ExciseError, match=f"{URL} holds another run \\(size differ\\); choose another folder"):
        Run.create(URL, {**PLAN, "size": "full"})
    with pytest.raises(ExciseError, match="s3://bucket/some holds other files"):
        Run.create("s3://bucket/some", PLAN)
    with pytest.raises(ExciseError, match="s3://bucket/none is not a run"):
        Run("s3://bucket/none")
