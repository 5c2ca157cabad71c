from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from excise.bench import liveness
from excise.bench.run import STALE, TRIES, Run, Unit
from excise.errors import ExciseError
from excise.files import temporary_beside

UNITS = [Unit("none", "gun"), Unit("snce", "gun"), Unit("snce:k=10,lam=2", "ice cream")]
JOINED = Unit("snce+saemnesia:saemnesia.sae=/some/where,snce.lam=2", "gun")


def line(unit: Unit, n: int) -> dict[str, object]:
    return {"method": unit.method, "case": f"{unit.concept}.{n}", "value": n}


def test_a_units_name_on_disk_is_one_files_and_says_which_it_is() -> None:
    for unit in (*UNITS, JOINED):
        assert not set(unit.file) & set("/:\\")
        assert Unit.of(unit.file) == unit


def test_a_run_goes_from_to_do_to_done(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"suite": "canvas"}, UNITS)
    assert run.units("todo") == UNITS
    claim = run.claim()
    assert claim is not None
    assert (run.units("todo"), run.units("doing")) == (UNITS[1:], UNITS[:1])
    claim.write([line(claim.unit, 0), line(claim.unit, 1)])
    claim.release()
    assert run.units("todo") == UNITS
    again = Run(tmp_path / "run").claim()
    assert again is not None
    assert again.unit == claim.unit
    assert [r["case"] for r in run.records(again.unit)] == ["gun.0", "gun.1"]
    again.write([line(again.unit, 2)])
    again.finish()
    assert (run.units("doing"), run.units("done")) == ([], UNITS[:1])
    assert [r["value"] for r in run.records()] == [0, 1, 2]


def test_methods_are_begun_in_the_plans_order(tmp_path: Path) -> None:
    units = [Unit(method, concept) for method in ("none", "uce:lam=1", "ca") for concept in ("axe", "gun")]
    run = Run.create(tmp_path, {"methods": ["none", "uce:lam=1", "ca"]}, units)
    claimed = []
    while (claim := run.claim()) is not None:
        claimed.append(claim.unit)
        claim.finish()
    assert claimed == units


def test_the_same_plan_opens_the_run_and_another_is_refused(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {"suite": "canvas", "methods": ("none",)}, UNITS)
    claim = run.claim()
    assert claim is not None
    claim.finish()
    assert Run.create(tmp_path, {"suite": "canvas", "methods": ["none"]}, UNITS).units("todo") == UNITS[1:]
    with pytest.raises(ExciseError, match=r"another run \(methods differ\)"):
        Run.create(tmp_path, {"suite": "canvas", "methods": ["snce"]}, UNITS)
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "thesis.txt").write_text("mine")
    with pytest.raises(ExciseError, match="holds other files"):
        Run.create(stranger, {}, UNITS)
    with pytest.raises(ExciseError, match="is not a run"):
        Run(stranger)
    (stranger / "run.json").write_text("{")
    with pytest.raises(ExciseError, match="damaged"):
        Run(stranger)
    (stranger / "run.json").write_text('{"schema": "excise.run/9"}')
    with pytest.raises(ExciseError, match=r"format 'excise\.run/9'"):
        Run(stranger)


WORKER = """
import sys, time
from excise.bench.run import Run
run = Run(sys.argv[1])
while (claim := run.claim()) is not None:
    for n in range(20):
        claim.write([{"method": claim.unit.method, "case": f"{claim.unit.concept}.{n}", "worker": sys.argv[2]}])
    claim.finish()
    print(claim.unit.file, flush=True)
"""


def test_two_workers_share_a_run_and_do_nothing_twice(tmp_path: Path) -> None:
    units = [Unit("snce", f"concept {n}") for n in range(12)]
    run = Run.create(tmp_path, {}, units)
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, tmp_path, str(n)], stdout=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    told = [worker.communicate()[0].splitlines() for worker in workers]
    assert sorted(told[0] + told[1]) == sorted(unit.file for unit in units)
    assert run.units("done") == sorted(units)
    assert len(run.records()) == 12 * 20
    assert len(list((tmp_path / "records").iterdir())) == 12


KILLED = """
import sys, time
from excise.bench.run import Run
claim = Run(sys.argv[1]).claim()
claim.write([{"method": "none", "case": f"gun.{n}"} for n in range(3)])
claim._log.write('{"method": "none", "ca')
claim._log.flush()
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_killed_workers_unit_goes_to_the_next_one(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {}, UNITS[:1])
    worker = subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdin is not None and worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    assert run.claim() is None, "the worker lives"
    worker.kill()
    worker.wait()
    claim = run.claim()
    assert claim is not None
    assert [r["case"] for r in run.records(claim.unit)] == ["gun.0", "gun.1", "gun.2"], "the torn line is left out"


NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "sh", "-c")
"""A container's view of process numbers; the numbers up to 4 are taken by short-lived programs."""
HOLD = '/bin/true; /bin/true; /bin/true; "$0" -c "$1" "$2"; true'


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode != 0,
    reason="no namespaces of process numbers can be made here",
)
def test_a_living_worker_in_another_container_keeps_its_unit(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {}, UNITS[:1])
    worker = subprocess.Popen(
        [*NAMESPACE, HOLD, sys.executable, KILLED, tmp_path], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        other = "import sys\nfrom excise.bench.run import Run\nprint(Run(sys.argv[1]).claim())"
        told = subprocess.run(
            [*NAMESPACE, '"$0" -c "$1" "$2"; true', sys.executable, other, tmp_path],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert told.stdout == "None\n"
        assert run.claim() is None, "nor to a worker outside"
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def test_a_process_is_told_by_its_place_number_and_start() -> None:
    host, place, pid, start = liveness.name().split(".")
    assert int(pid) == os.getpid()
    assert not liveness.is_dead(liveness.name())
    assert liveness.is_dead(f"{host}.{place}.{pid}.{int(start) + 1}"), "another process had the number before"
    assert not liveness.is_dead(f"{host}.{place[::-1]}.999999.1"), "elsewhere its state is unknown"
    assert not liveness.is_dead(f"{host}.999999"), "as older versions named it"
    ended = subprocess.run(
        [sys.executable, "-c", "from excise.bench import liveness; print(liveness.name())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert liveness.is_dead(ended.stdout.strip())


def test_a_unit_whose_workers_die_is_set_aside_and_can_be_retried(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {}, UNITS[:1])
    for n in range(TRIES):
        died = tmp_path / "doing" / f"{UNITS[0].file}@elsewhere.{n}"
        died.parent.mkdir(exist_ok=True)
        (tmp_path / "todo" / UNITS[0].file).rename(died)
        os.utime(died, (time.time() - STALE - 1,) * 2)
        run._take_back()
    assert (run.units("todo"), run.units("failed"), run.claim()) == ([], UNITS[:1], None)
    assert run.errors() == {UNITS[0]: [f"its worker ended without an error (elsewhere.{n})" for n in range(TRIES)]}
    assert run.retry() == UNITS[:1]
    assert (run.units("todo"), run.errors()) == (UNITS[:1], {})


def test_what_a_dead_writer_left_is_no_unit(tmp_path: Path) -> None:
    (tmp_path / "run" / "todo").mkdir(parents=True)
    for place in ("todo/none=gun", "run.json"):
        temporary_beside(tmp_path / "run" / place).write_text("")
    assert Run.create(tmp_path / "run", {}, UNITS).units("todo") == UNITS


def test_a_claim_of_another_machine_goes_stale(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {}, UNITS[:1])
    (tmp_path / "doing").mkdir()
    far = tmp_path / "doing" / f"{UNITS[0].file}@elsewhere.example.123"
    (tmp_path / "todo" / UNITS[0].file).rename(far)
    assert run.claim() is None
    os.utime(far, (time.time() - STALE - 1,) * 2)
    claim = run.claim()
    assert claim is not None
    # The other one was only asleep: what it still writes counts where it was first, and finishing is harmless.
    claim.write([line(claim.unit, 0)])
    later = tmp_path / "records" / f"{UNITS[0].file}@elsewhere.example.123.jsonl"
    later.write_text(json.dumps(line(claim.unit, 0)) + "\n" + json.dumps(line(claim.unit, 1)) + "\n")
    claim.finish()
    claim.finish()
    assert [r["case"] for r in run.records()] == ["gun.0", "gun.1"]
