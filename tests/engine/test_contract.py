"""What every engine promises: the same files, whatever dies, raises or works next to it."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from excise.engine import Needs, Outcome, check_made, make_all, run
from excise.engine import engines as names
from excise.errors import ExciseError, InvalidSetting, ItemsFailed
from tests.engine.stages import Arrays, expected

ROOT = Path(__file__).parents[2]
ENGINES = ("local", "processes:2", "slice:0/2", "pool")
APART = ENGINES[1:]
"""Engines whose workers are not this process."""
N = 6


def executor(address: str, workers: int, needs: Needs) -> concurrent.futures.Executor:
    """An engine as a plugin brings it."""
    return concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


@pytest.fixture(autouse=True)
def a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "plugins", lambda group: {"pool": executor})


def by_item(outcomes: list[Outcome[int]]) -> dict[int, Outcome[int]]:
    assert sorted(outcome.item for outcome in outcomes) == list(range(N)), "one outcome for each item"
    return {outcome.item: outcome for outcome in outcomes}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_bytes_and_a_second_call_makes_nothing(engine: str, tmp_path: Path) -> None:
    stage = Arrays(str(tmp_path))
    made = by_item(list(run(engine, stage, range(N), workers=1 if engine == "local" else 2)))
    assert {outcome.state for outcome in made.values()} == {"made"}
    assert stage.contents(N) == expected(N)
    assert sorted(stage.begun()) == list(range(N))
    again = by_item(list(run(engine, stage, range(N))))
    assert {outcome.state for outcome in again.values()} == {"kept"}
    assert len(stage.begun()) == N
    stage.path(4).unlink()
    last = by_item(list(run(engine, stage, range(N))))
    assert [item for item, outcome in last.items() if outcome.state == "made"] == [4]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_item_that_raises_is_tried_once_and_set_aside(engine: str, tmp_path: Path) -> None:
    failures = tmp_path / "failures"
    stage = Arrays(str(tmp_path / "made"), raising=2)
    made = by_item(list(run(engine, stage, range(N), failures=failures)))
    assert (made[2].state, made[2].tries, made[2].error, made[2].aside) == ("failed", 1, "RuntimeError", True)
    assert made[2].why == "failed with RuntimeError: CUDA error: out of memory"
    assert stage.contents(N) == expected(N, without=(2,))
    written = json.loads((failures / "item-2.json").read_text())
    assert written["why"] == made[2].why and "_make" in written["trace"]
    cured = Arrays(str(tmp_path / "made"))
    assert by_item(list(run(engine, cured, range(N), failures=failures)))[2].why == made[2].why
    assert stage.begun().count(2) == 1
    assert by_item(list(run(engine, cured, range(N), failures=failures, retry=True)))[2].state == "made"
    assert list(failures.iterdir()) == []


@pytest.mark.parametrize("engine", ["local", "processes:2", "slice:0/2"])
@pytest.mark.parametrize("how", ["raise", "refuse", "die"])
def test_an_item_that_another_call_made_while_a_try_failed_is_kept(engine: str, how: str, tmp_path: Path) -> None:
    if (engine, how) == ("local", "die"):
        pytest.skip("it would end this process")
    stage = Arrays(str(tmp_path / "made"), meeting=2, meeting_ends=how)
    made = by_item(list(run(engine, stage, range(N), workers=1 if engine == "local" else 2, failures=tmp_path / "f")))
    assert (made[2].state, made[2].tries) == ("kept", 1)
    assert stage.contents(N) == expected(N)
    assert not list((tmp_path / "f").glob("*"))
    if how == "raise":
        again = list(run(engine, stage, [2], failures=tmp_path / "f", **({} if "slice" in engine else {"again": True})))
        assert again[0].state == ("kept" if "slice" in engine else "failed"), "an old file does not stand for a new one"


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_that_a_user_can_fix_is_not_set_aside(engine: str, tmp_path: Path) -> None:
    stage = Arrays(str(tmp_path / "made"), refusing=2)
    made = by_item(list(run(engine, stage, range(N), failures=tmp_path / "failures")))
    assert (made[2].error, made[2].why) == ("ExciseError", "the concept has too few pairs; give 10 or more")
    assert not made[2].aside
    written = [path.name for path in tmp_path.glob("failures/*")]
    assert written == (["item-2.json"] if "slice" in engine else []), "a slice tells the others, for as long as it runs"
    cured = Arrays(str(tmp_path / "made"))
    assert by_item(list(run(engine, cured, range(N), failures=tmp_path / "failures")))[2].state == "made"
    assert list(tmp_path.glob("failures/*")) == []


@pytest.mark.parametrize("engine", APART)
def test_an_item_that_ends_its_worker_takes_no_other_along(engine: str, tmp_path: Path) -> None:
    stage = Arrays(str(tmp_path / "made"), ending=2)
    made = by_item(list(run(engine, stage, range(N), workers=2, failures=tmp_path / "failures")))
    assert (made[2].state, made[2].tries, made[2].error) == ("failed", 3, "Lost")
    assert stage.contents(N) == expected(N, without=(2,))
    assert json.loads((tmp_path / "failures" / "item-2.json").read_text())["tries"] == 3
    if engine != "pool":
        assert stage.begun().count(2) == 3
        assert made[2].why == "its worker ended with exit code 7"
        assert {outcome.tries for item, outcome in made.items() if item != 2} == {1}


def test_a_lost_item_is_tried_again_behind_the_others(tmp_path: Path) -> None:
    stage = Arrays(str(tmp_path), ending=2)
    assert by_item(list(run("processes:1", stage, range(N), tries=2)))[2].tries == 2
    assert stage.begun() == [0, 1, 2, 3, 4, 5, 2]


@pytest.mark.parametrize("engine", APART)
def test_an_item_whose_worker_is_killed_is_made_by_another(engine: str, tmp_path: Path) -> None:
    stage = Arrays(str(tmp_path), killed_once=2)
    made = by_item(list(run(engine, stage, range(N), workers=2, failures=tmp_path / "failures")))
    assert {outcome.state for outcome in made.values()} == {"made"}
    assert stage.contents(N) == expected(N)
    assert not (tmp_path / "failures").exists()
    if engine != "pool":
        assert {item: outcome.tries for item, outcome in made.items()} == {**dict.fromkeys(range(N), 1), 2: 2}


@pytest.mark.parametrize("engine", APART)
@pytest.mark.parametrize("how", ["refused", "raised", "killed"])
def test_workers_that_cannot_open_the_stage_end_the_call_and_blame_no_item(
    engine: str, how: str, tmp_path: Path
) -> None:
    if (engine, how) == ("pool", "killed"):
        pytest.skip("an executor does not tell when its worker died")
    stage = Arrays(str(tmp_path), unopened=how)
    says = {"refused": "^the model is not", "raised": "^no worker could start: failed with R", "killed": "SIGKILL"}[how]
    with pytest.raises(ExciseError, match=says):
        list(run(engine, stage, range(N), workers=2, failures=tmp_path / "failures"))
    assert stage.begun() == []
    assert not (tmp_path / "failures").exists()
    if how != "killed":
        assert len(stage.opened()) <= 2, "a worker that says why it cannot start is not started again"


DRIVER = """
import sys
from contextlib import closing
from excise.engine import run
from excise.interruption import as_ctrl_c
from tests.engine.stages import Arrays

if __name__ == "__main__":
    as_ctrl_c()
    with closing(run(sys.argv[1], Arrays(sys.argv[2], sleeping=0.05, together=2), range(6))) as making:
        outcomes = list(making)
    print(sorted(outcome.item for outcome in outcomes if outcome.state != "failed"))
"""


@pytest.mark.parametrize("engines", [("local", "local"), ("processes:2", "local"), ("slice:0/2", "slice:1/2")])
def test_two_drivers_at_once_give_the_same_bytes(engines: tuple[str, ...], tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    command = [sys.executable, str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    drivers = [
        subprocess.Popen([*command, engine, str(tmp_path / "made")], stdout=subprocess.PIPE, text=True, env=environment)
        for engine in engines
    ]
    assert [driver.communicate()[0].strip() for driver in drivers] == ["[0, 1, 2, 3, 4, 5]"] * 2
    stage = Arrays(str(tmp_path / "made"))
    assert stage.contents(N) == expected(N)
    assert sorted(path.name for path in (tmp_path / "made").iterdir() if path.name.startswith(".")) == []
    if engines[0].startswith("slice"):
        assert len(stage.begun()) <= N + 1, "they meet: at most one item is made twice"


def test_slices_report_what_another_could_not_make_and_do_not_repeat_it(tmp_path: Path) -> None:
    failures = tmp_path / "failures"
    stage = Arrays(str(tmp_path / "made"), raising=1, refusing=3)
    with closing(run("slice:0/2", stage, range(N), failures=failures)) as first:
        of_first = [next(first)]  # it has begun when the second one makes and fails all that is left
        second = by_item(list(run("slice:1/2", stage, range(N), failures=failures)))
        made = by_item([*of_first, *first])
    for found in (second, made):
        assert {item for item, outcome in found.items() if outcome.state == "failed"} == {1, 3}
        assert (found[1].aside, found[3].aside) == (True, False)
        assert (found[1].elsewhere, found[3].elsewhere) == (found is made,) * 2
    assert {item for item, outcome in made.items() if outcome.elsewhere} == {1, 3, 5}, "item 5 was made by its owner"
    assert not any(outcome.elsewhere for item, outcome in second.items() if item in (1, 3, 5))
    assert (second[5].state, made[5].state) == ("made", "kept")
    assert [stage.begun().count(item) for item in (1, 3, 5)] == [1, 1, 1]
    found = by_item(list(run("slice:0/2", stage, range(N), failures=failures)))
    assert (found[1].state, found[3].state) == ("failed", "failed")
    assert [stage.begun().count(item) for item in (1, 3)] == [1, 2], "helpers too try what may be mended"
    cured = Arrays(str(tmp_path / "made"))
    assert by_item(list(run("slice:0/2", cured, range(N), failures=failures)))[3].state == "made"
    assert by_item(list(run("slice:1/2", cured, range(N), failures=failures)))[1].state == "failed"
    assert by_item(list(run("slice:0/2", cured, range(N), failures=failures, retry=True)))[1].state == "made"
    assert list(failures.iterdir()) == []


def test_a_slice_answers_for_what_it_took_over(tmp_path: Path) -> None:
    """Its owner does not run, or fails at it later: both then speak of it."""
    failures = tmp_path / "failures"
    stage = Arrays(str(tmp_path / "made"), raising=1)
    found = by_item(list(run("slice:0/2", stage, range(N), failures=failures)))
    assert (found[1].state, found[1].elsewhere) == ("failed", False)
    assert not any(outcome.elsewhere for outcome in found.values())
    owner = by_item(list(run("slice:1/2", stage, range(N), failures=failures)))
    assert (owner[1].state, owner[1].elsewhere) == ("failed", False)
    assert {item for item, outcome in owner.items() if outcome.elsewhere} == {0, 2, 4}
    later = by_item(list(run("slice:0/2", stage, range(N), failures=failures)))
    assert (later[1].state, later[1].elsewhere) == ("failed", True), "it was set aside, and is not tried"


def test_items_that_follow_are_reported_by_the_slice_that_they_belong_to(tmp_path: Path) -> None:
    stage, failures = Arrays(str(tmp_path / "made"), raising=3), tmp_path / "failures"
    then = lambda outcome: [1, 2, 3, 4, 5] if outcome.item == 0 else []  # noqa: E731
    parts = [list(run(f"slice:{n}/2", stage, [0], then=then, failures=failures)) for n in (1, 0)]
    helped, found = ({outcome.item: outcome for outcome in part} for part in parts)
    assert not any(outcome.elsewhere for outcome in helped.values()), "it made all, or failed at them"
    mine = [item for item in range(1, N) if zlib.crc32(f"item-{item}".encode()) % 2 == 0]
    assert 0 < len(mine) < N - 1
    assert sorted(item for item, outcome in found.items() if not outcome.elsewhere) == [0, *mine]


@pytest.mark.parametrize("retry", [False, True])
def test_a_slice_that_starts_later_leaves_the_failures_of_others(retry: bool, tmp_path: Path) -> None:
    failures = tmp_path / "failures"
    stage = Arrays(str(tmp_path / "made"), raising=1, refusing=3)
    list(run("slice:1/2", stage, range(N), failures=failures))
    with closing(run("slice:0/2", stage, range(N), failures=failures, retry=retry)) as late:
        assert next(late).item == 0
        assert sorted(path.name for path in failures.iterdir()) == ["item-1.json", "item-3.json"], "a third may read"


def test_make_all_fails_for_the_slice_and_for_the_first_which_needs_them_all(tmp_path: Path) -> None:
    stage, failures = Arrays(str(tmp_path / "made"), raising=1), tmp_path / "failures"
    with pytest.raises(ItemsFailed, match=r"^1 of 6 failed, the first item-1"):
        make_all("slice:1/3", stage, range(N), failures=failures)
    assert make_all("slice:2/3", stage, range(N), failures=failures) is False
    with pytest.raises(ItemsFailed, match=r"^1 of 6 failed, the first item-1"):
        make_all("slice:0/3", stage, range(N), failures=failures)
    with pytest.raises(ItemsFailed, match=r"^1 of 2 failed"):
        make_all("slice:1/3", stage, range(N), failures=failures)
    for index in range(3):
        assert make_all(f"slice:{index}/3", Arrays(stage.folder), range(N), failures=failures, retry=True) is True


class Others(Arrays):
    """Another command's stage, whose items have the same names."""


def test_a_failure_is_of_one_command_and_one_file(tmp_path: Path) -> None:
    failures = tmp_path / "failures"
    list(run("local", Arrays(str(tmp_path / "made"), raising=2), range(N), failures=failures))
    for stage in (Others(str(tmp_path / "others")), Arrays(str(tmp_path / "elsewhere"))):
        assert {outcome.state for outcome in run("local", stage, range(N), failures=failures)} == {"made"}
    same = Arrays(str(tmp_path / "made"))
    assert by_item(list(run("local", same, range(N), failures=failures)))[2].aside
    same.path(2).write_bytes(b"made by hand")
    assert by_item(list(run("local", same, range(N), failures=failures)))[2].state == "kept"
    assert list(failures.iterdir()) == [], "what is there has not failed"


def test_the_line_at_the_end_names_what_failed(tmp_path: Path) -> None:
    refused = Outcome(1, "failed", why="give 10 pairs", error="ExciseError")
    lost = Outcome(2, "failed", why="its worker was killed by SIGKILL", error="Lost", aside=True)
    check_made([Outcome(0, "kept"), Outcome(3, "made")], str, tmp_path)
    with pytest.raises(ExciseError, match=r"^1: give 10 pairs$"):
        check_made([Outcome(0, "kept"), refused], str, tmp_path)
    with pytest.raises(ItemsFailed, match=r"^2 of 3 failed, the first 2: its worker was killed by SIGKILL; details"):
        check_made([Outcome(0, "kept"), refused, lost], str, tmp_path)


def test_an_item_that_writes_nothing_has_failed(tmp_path: Path) -> None:
    made = by_item(list(run("local", Arrays(str(tmp_path), silent=2), range(N))))
    assert (made[2].state, made[2].error) == ("failed", "NotWritten")
    assert "did not write" in made[2].why


def test_again_makes_what_is_there(tmp_path: Path) -> None:
    stage = Arrays(str(tmp_path))
    list(run("local", stage, range(N)))
    stage.path(1).write_bytes(b"old")
    assert {o.state for o in run("local", stage, range(N), again=True)} == {"made"}
    assert stage.contents(N) == expected(N)
    with pytest.raises(InvalidSetting, match="a slice cannot"):
        run("slice:0/2", stage, range(N), again=True)


def test_ctrl_c_reaches_every_worker_once_and_ends_them(tmp_path: Path) -> None:
    stage = Arrays(str(tmp_path), marking=True)

    def interrupt() -> None:
        while len(stage.begun()) < 2:
            time.sleep(0.02)
        time.sleep(0.2)  # until both are marking
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), closing(run("processes:2", stage, range(N))) as outcomes:
        list(outcomes)
    assert time.monotonic() - began < 50
    assert sorted(stage.interrupted()) == sorted(pid for pid, *_ in stage.opened())
    assert not any(Path(f"/proc/{pid}").exists() for pid, *_ in stage.opened())
    assert stage.contents(N) == {}


@pytest.mark.parametrize("how", ["killed", "terminated", "all terminated", "hung up"])
def test_workers_end_with_their_driver_in_the_middle_of_an_item(how: str, tmp_path: Path) -> None:
    """A scheduler may send SIGTERM to the driver alone, or to each process of a job: an item is interrupted once."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.replace("sleeping=0.05, together=2", "marking=True"))
    stage = Arrays(str(tmp_path / "made"))
    command = [sys.executable, str(script), "processes:2", str(tmp_path / "made")]
    driver = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    while len(stage.begun()) < 2:
        time.sleep(0.02)
    time.sleep(0.2)
    number = {"killed": signal.SIGKILL, "hung up": signal.SIGHUP}.get(how, signal.SIGTERM)
    for pid in (driver.pid, *(int(pid) for pid, *_ in stage.opened() if how == "all terminated")):
        os.kill(pid, number)
    driver.wait(timeout=40)
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid, *_ in stage.opened()):
        assert time.monotonic() < deadline, "its item takes 60 seconds"
        time.sleep(0.05)
    assert sorted(stage.interrupted()) == sorted(pid for pid, *_ in stage.opened())
    assert {o.state for o in run("local", Arrays(stage.folder), range(N))} == {"made"}
    assert stage.contents(N) == expected(N)


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_workers_share_the_cores_and_take_turns_over_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,3")
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    stage = Arrays(str(tmp_path / "own"), sleeping=0.3)
    list(run("processes:3", stage, range(N), needs=Needs(gpus=1)))
    assert sorted(rest for _, *rest in stage.opened()) == [["2", "3"], ["2", "GPU-a"], ["2", "GPU-a"]]
    stage = Arrays(str(tmp_path / "all"), sleeping=0.1)
    list(run("processes:2", stage, range(N), needs=Needs(cpus=5)))
    assert sorted(rest for _, *rest in stage.opened()) == [["5", "GPU-a,3"]] * 2


def test_two_items_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="two items are called 'item-1'"):
        run("local", Arrays(str(tmp_path)), [0, 1, 1])


def outcome_of(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InvalidSetting) as error:
        run(*arguments, **options)
    return str(error.value)


@pytest.mark.parametrize(
    ("engine", "workers", "says"),
    [
        ("procesess", 1, "there is no engine 'procesess'; choose from local, processes, slice, ray, pool"),
        ("processes:0", 1, "write processes:N"),
        ("processes:x", 1, "write processes:N"),
        ("processes:2", 3, "disagree"),
        ("local", 2, "name processes:2"),
        ("local:2", 1, "no engine 'local:2'"),
        ("ray:head", 1, "ray://HOST:PORT"),
        ("slice:2/2", 1, "I counts from 0 to N - 1"),
        ("slice:a/b", 1, "slice:I/N"),
        ("slice", 1, "SLURM_ARRAY_TASK_ID"),
        ("local", 0, "give 1 or more"),
    ],
)
def test_an_impossible_engine_is_refused_before_any_work(engine: str, workers: int, says: str, tmp_path: Path) -> None:
    assert says in outcome_of(engine, Arrays(str(tmp_path)), range(N), workers=workers)
    assert list(tmp_path.iterdir()) == []
