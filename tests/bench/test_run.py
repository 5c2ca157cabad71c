"""A run as files: units, records in blocks, runs of earlier versions, and what a stranger may have put there."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from excise.bench.items import blocks
from excise.bench.items.cases import block_file, picture_of
from excise.bench.pictures import from_png, png
from excise.bench.run import Run, Unit
from excise.errors import ExciseError
from excise.files import temporary_beside, write_atomic

PLAN = {"suite": "canvas", "methods": ["none", "snce:k=10,lam=2"], "concepts": ["gun", "ice cream"]}
UNITS = [Unit(method, concept) for method in ("none", "snce:k=10,lam=2") for concept in ("gun", "ice cream")]
JOINED = Unit("snce+saemnesia:saemnesia.sae=/some/where,snce.lam=2", "gun")


def line(unit: Unit, n: int) -> dict[str, object]:
    return {"method": unit.method, "case": f"{unit.concept.replace(' ', '-')}.{n}", "value": n}


def picture(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (4, 4, 3), np.uint8)


def put(run: Run, unit: Unit, number: int, *cases: int) -> Path:
    """Write a block with these cases."""
    rows = [line(unit, n) for n in cases]
    file = block_file(run.folder, unit, number)
    pictures = {str(row["case"]): png(picture(n)) for n, row in zip(cases, rows, strict=True)}
    write_atomic(file, blocks.packed(rows, pictures))
    return file


def test_a_units_name_on_disk_is_one_files_and_says_which_it_is() -> None:
    for unit in (*UNITS, JOINED):
        assert not set(unit.file) & set("/:\\")
        assert Unit.of(unit.file) == unit


def test_records_and_pictures_come_from_blocks(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", PLAN)
    assert run.units("todo") == UNITS
    put(run, UNITS[0], 1, 2)
    put(run, UNITS[0], 0, 0, 1)
    put(run, UNITS[2], 0, 0)
    assert [row["value"] for row in run.records(UNITS[0])] == [0, 1, 2]
    assert len(run.records()) == 4
    path = picture_of(run, UNITS[0], "gun.2")
    assert path == run.folder / "pictures" / "none=gun" / "gun.2.png"
    assert np.array_equal(from_png(path.read_bytes()), picture(2))
    assert not picture_of(run, UNITS[0], "gun.3").exists()
    put(run, UNITS[0], 2, 3)
    assert picture_of(run, UNITS[0], "gun.3").exists(), "a block that came later"


def test_a_block_has_the_same_bytes_and_any_program_opens_it(tmp_path: Path) -> None:
    rows, pictures = [line(UNITS[0], 0)], {"gun.0": png(picture(0))}
    assert blocks.packed(rows, pictures) == blocks.packed(rows, pictures)
    (tmp_path / "block.zip").write_bytes(blocks.packed(rows, pictures))
    with zipfile.ZipFile(tmp_path / "block.zip") as block:
        assert block.namelist() == ["records.jsonl", "gun.0.png"]
        assert json.loads(block.read("records.jsonl")) == rows[0]


@pytest.mark.parametrize("data", [b"", b"PK\x05\x06" + bytes(18), b"no block", blocks.packed([], {})[:-5]])
def test_a_block_that_is_none_is_one_clear_line(tmp_path: Path, data: bytes) -> None:
    run = Run.create(tmp_path / "run", PLAN)
    write_atomic(block_file(run.folder, UNITS[0], 0), data)
    with pytest.raises(ExciseError, match=r"cannot read .*00000\.zip .*; delete it and resume the run"):
        run.records()


def test_a_block_of_a_stranger_cannot_fill_the_memory_or_lead_out_of_the_run(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", PLAN)
    file = put(run, UNITS[0], 0, 0)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("records.jsonl", b"\n" * 10**6)
    with pytest.raises(ExciseError, match="is compressed or too large"):
        run.records()
    with zipfile.ZipFile(file, "w") as odd:
        odd.writestr("records.jsonl", '{"method": "none"}\n')
    with pytest.raises(ExciseError, match="without a method or a case"):
        run.records()
    file.unlink()
    real = put(run, UNITS[1], 0, 0)
    file.symlink_to(real)
    with pytest.raises(ExciseError, match="cannot read"):
        run.records(UNITS[0])
    file.unlink()
    file.parent.rmdir()
    file.parent.symlink_to(real.parent)
    with pytest.raises(ExciseError, match="is a link"):
        run.records(UNITS[0])


def test_the_same_plan_opens_the_run_and_another_is_refused(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"suite": "canvas", "methods": ("none",)})
    (run.folder / "done").mkdir()
    assert Run.create(tmp_path / "run", {"suite": "canvas", "methods": ["none"]}).plan == run.plan
    with pytest.raises(ExciseError, match=r"another run \(methods differ\)"):
        Run.create(tmp_path / "run", {"suite": "canvas", "methods": ["snce"]})
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "thesis.txt").write_text("mine")
    with pytest.raises(ExciseError, match="holds other files"):
        Run.create(stranger, {})
    with pytest.raises(ExciseError, match="is not a run"):
        Run(stranger)
    (stranger / "run.json").write_text("{")
    with pytest.raises(ExciseError, match="damaged"):
        Run(stranger)
    (stranger / "run.json").write_text('{"schema": "excise.run/9"}')
    with pytest.raises(ExciseError, match=r"format 'excise\.run/9'"):
        Run(stranger)


def test_what_a_dead_writer_left_is_no_file_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    temporary_beside(tmp_path / "run" / "run.json").write_text("")
    run = Run.create(tmp_path / "run", PLAN)
    temporary_beside(put(run, UNITS[0], 0, 0)).write_text("")
    assert len(run.records()) == 1


def test_a_failure_is_of_the_units_that_it_stops(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", PLAN)
    for name in ("fit-none=gun", "draw-none=gun-00003", "search-ice cream"):
        write_atomic(run.folder / "failures" / f"{name}.json", json.dumps({"why": name}))
    assert run.errors() == {
        UNITS[0]: ["draw-none=gun-00003", "fit-none=gun"],
        UNITS[1]: ["search-ice cream"],
        UNITS[3]: ["search-ice cream"],
    }
    assert (run.units("failed"), run.units("todo")) == ([UNITS[0], UNITS[1], UNITS[3]], [UNITS[2]])
    assert run.retry() == [UNITS[0], UNITS[1], UNITS[3]]
    assert run.errors() == {}


def test_a_run_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    write_atomic(tmp_path / "run" / "run.json", json.dumps({"schema": "excise.run/1", **PLAN}))
    run = Run(tmp_path / "run")
    for state, unit in (("done", UNITS[0]), ("done", UNITS[1]), ("failed", UNITS[2]), ("todo", UNITS[3])):
        write_atomic(run.folder / state / unit.file, "")
    write_atomic(run.folder / "tries" / f"{UNITS[2].file}@host.1.json", json.dumps({"error": "it broke"}))
    first = json.dumps(line(UNITS[0], 0)) + "\n" + json.dumps(line(UNITS[0], 1)) + '\n{"method": "no'
    write_atomic(run.folder / "records" / f"{UNITS[0].file}@one.jsonl", first)
    second = {**line(UNITS[0], 1), "value": "later"}
    write_atomic(run.folder / "records" / f"{UNITS[0].file}@two.jsonl", json.dumps(second) + "\n")
    write_atomic(run.folder / "pictures" / "none=gun" / "gun.0.png", png(picture(0)))
    assert run.old
    assert [row["value"] for row in run.records()] == [0, 1], "the first line counts, and a torn one does not"
    assert (run.units("done"), run.units("failed"), run.units("todo")) == (UNITS[:2], UNITS[2:3], UNITS[3:])
    assert run.errors() == {UNITS[2]: ["it broke"]}
    assert picture_of(run, UNITS[0], "gun.0").exists()
