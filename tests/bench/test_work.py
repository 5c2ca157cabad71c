"""Work on a run, on any engine: what follows from what, what fails, and what is drawn once."""

from __future__ import annotations

import errno
import os
import signal
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from excise.bench.items import making
from excise.bench.items.cases import block_file
from excise.bench.items.making import Item, Opened
from excise.bench.items.work import Unfinished, work
from excise.bench.run import Run, Unit
from excise.bench.suite import Case
from excise.drawn import Pixels
from excise.engine import engines
from excise.engine.local import Local
from excise.errors import ExciseError

CONCEPTS = ("axe", "bat", "cat", "dog")
UNITS = [Unit("none", name) for name in CONCEPTS]


@dataclass(frozen=True)
class Small:
    """Suite of 4x4 pictures: 20 shared prompts and one of the concept's own, a search and one case of the baseline."""

    folder: str
    batch: int = 1
    name: str = "small"
    families: tuple[Any, ...] = ()

    def cases(self, concept: str, size: str) -> list[Case]:
        shared = [Case(f"{concept}.{n:02}", concept, "shared", f"prompt {n}", n) for n in range(20)]
        return [*shared, Case(f"{concept}.own", concept, "own", f"a {concept}", 7)]

    def search(self, pipe: Any, concept: str, size: str) -> list[Case]:
        self._log(f"search {concept}")
        return [Case(f"{concept}.found", concept, "found", f"found {concept}", 8)]

    def baseline(self, concept: str, size: str) -> list[Case]:
        return [Case(f"{concept}.again", concept, "again", f"a {concept}", 9)]

    def draw(self, pipe: Any, cases: list[Case]) -> Pixels:
        for case in cases:
            self._log(case.prompt)
            if case.prompt == pipe.get("poison"):
                pipe["how"]()
        return np.stack([np.random.default_rng(case.seed).integers(0, 256, (4, 4, 3), np.uint8) for case in cases])

    def judge(self, cases: list[Case], pictures: Pixels) -> list[dict[str, Any]]:
        return [
            {"target": int(picture.sum()) % 2 == 0, "of": case.concept}
            for case, picture in zip(cases, pictures, strict=True)
        ]

    def _log(self, line: str) -> None:
        with (Path(self.folder) / "log").open("a") as log:
            log.write(f"{line}\n")

    def log(self) -> list[str]:
        return (Path(self.folder) / "log").read_text().splitlines()


class Empty:
    """An eraser without edits."""

    edits = ()
    weak = ()

    def attach(self, pipe: Any, sae: Any = None) -> Any:
        from contextlib import nullcontext

        return nullcontext()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def burn() -> None:
    raise RuntimeError("cuda is on fire")


def fill() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@dataclass(frozen=True)
class Opening:
    folder: str
    poison: str = ""
    how: Callable[[], None] = burn

    def __call__(self) -> Opened:
        stub()
        return Opened(Small(self.folder), {"poison": self.poison, "how": self.how}, {})  # type: ignore[arg-type]


def stub(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Leave out what needs a real pipeline."""
    put(making, "suppress_cut_warnings", lambda pipe: None)
    put(making, "cuts", lambda pipe, prompts: [])
    put(making, "drawn_with", lambda pipe, sampler: "small")
    put(making.Maker, "_made", lambda self, unit, entry: Empty())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    stub(monkeypatch.setattr)
    return Run.create(tmp_path / "run", {"methods": ["none"], "concepts": CONCEPTS, "size": "quick"})


def at_work(run: Run, folder: Path, poison: str = "", how: Callable[[], None] = burn, **options: Any) -> Small:
    opening, suite = Opening(str(folder), poison, how), Small(str(folder))
    work(run, suite, lambda: {"poison": poison, "how": how}, {}, opening=opening, **options)
    return suite


def pictures(run: Run) -> dict[str, str]:
    return {record["case"]: record["picture"] for record in run.records()}


def test_equal_pictures_are_drawn_once_and_judged_for_every_concept(run: Run, tmp_path: Path) -> None:
    log = at_work(run, tmp_path).log()
    assert run.units("done") == UNITS
    records = run.records()
    assert len(records) == 4 * (21 + 2)
    drawn = [line for line in log if line.startswith("prompt")]
    assert sorted(drawn) == sorted(f"prompt {n}" for n in range(20)), "80 pictures, 20 of them different"
    assert len(log) == 20 + 4 * (1 + 3)
    assert {record["seen"]["of"] for record in records if record["case"].startswith("dog")} == {"dog"}
    assert {r.get("reused") for r in records if r["case"] == "dog.03"} == {"axe.03"}
    found = pictures(run)
    assert len({found[f"{concept}.03"] for concept in CONCEPTS}) == 1
    assert log[:3] == ["search axe", "prompt 0", "prompt 1"], "a concept is finished before the next is begun"
    at_work(run, tmp_path)
    assert len(Small(str(tmp_path)).log()) == len(log), "nothing is made twice"


@pytest.mark.parametrize("engine", ["processes:2", "slice:0/2"])
def test_equal_pictures_are_drawn_once_by_several_workers_too(run: Run, tmp_path: Path, engine: str) -> None:
    both = Run.create(tmp_path / "both", {**run.plan, "methods": ["none", "uce"]})
    log = at_work(both, tmp_path, engine=engine).log()
    assert both.units("done") == sorted(both.all_units)
    drawn = [line for line in log if not line.startswith("search")]
    shared = [f"prompt {n}" for n in range(20)]
    own = [line for name in CONCEPTS for line in (f"a {name}", f"a {name}", f"found {name}")]
    wanted = Counter([*shared, *own])
    assert not wanted - Counter(drawn)
    again = (Counter(drawn) - wanted).total()
    assert again == len(CONCEPTS), "uce edits nothing here: all is taken over, and one picture a unit drawn as a check"


def test_no_two_records_name_each_other_as_their_origin(run: Run, tmp_path: Path) -> None:
    at_work(run, tmp_path)
    for number in range(2):
        block_file(run.folder, UNITS[0], number).unlink()
    (run.folder / "done" / "none=axe").unlink()
    at_work(run, tmp_path)
    assert not any("reused" in record for record in run.records(UNITS[0])), "bat's pictures name axe's"
    assert {record.get("reused") for record in run.records(UNITS[1])} >= {"axe.03"}


def test_a_block_that_fails_is_drawn_for_those_that_waited_for_it(run: Run, tmp_path: Path) -> None:
    with pytest.raises(Unfinished, match="1 parts are not done: none on axe, block 1: "):
        at_work(run, tmp_path, "a axe", engine="processes:2")
    assert run.units("done") == UNITS[1:]
    assert [len(run.records(unit)) for unit in UNITS] == [16, 23, 23, 23]


@pytest.mark.parametrize("engine", ["processes:2", "slice:0/2"])
def test_every_engine_gives_the_same_records(run: Run, tmp_path: Path, engine: str) -> None:
    (tmp_path / "other").mkdir()
    at_work(run, tmp_path)
    plan = {key: value for key, value in run.plan.items() if key != "schema"}
    other = Run.create(tmp_path / "other" / "run", plan)
    told: list[float] = []
    work(other, Small(str(tmp_path)), dict, {}, told.append, opening=Opening(str(tmp_path / "other")), engine=engine)
    assert other.units("done") == UNITS
    assert pictures(other) == pictures(run)
    assert sum(told) == 4 * 23
    left_out = ("seconds", "reused")
    plain = [{k: v for k, v in record.items() if k not in left_out} for record in run.records()]
    assert [{k: v for k, v in record.items() if k not in left_out} for record in other.records()] == plain


@pytest.mark.parametrize(
    ("how", "says"), [(burn, "failed with RuntimeError: cuda is on fire"), (kill, "its worker was killed by SIGKILL")]
)
def test_a_poisonous_block_is_set_aside_and_all_others_are_done(
    run: Run, tmp_path: Path, how: Callable[[], None], says: str
) -> None:
    engine = "processes:2" if how is kill else None
    with pytest.raises(Unfinished, match=r"1 parts are not done: none on bat, block 1: ") as said:
        at_work(run, tmp_path, "a bat", how, engine=engine)
    assert says in str(said.value) and "--retry" in str(said.value)
    assert (run.units("done"), run.units("failed")) == ([u for u in UNITS if u.concept != "bat"], UNITS[1:2])
    assert len(run.records(UNITS[1])) == 16, "its first block"
    with pytest.raises(Unfinished):
        at_work(run, tmp_path)
    run.retry()
    at_work(run, tmp_path)
    assert (run.units("done"), run.errors()) == (UNITS, {})


def test_a_slice_does_not_fail_for_what_another_slice_failed_at(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "Processes", lambda stage, needs, workers: Local(stage))
    owner = zlib.crc32(f"draw-{UNITS[1].file}-00001".encode()) % 2
    with pytest.raises(Unfinished, match="1 parts are not done: none on bat, block 1: "):
        at_work(run, tmp_path, "a bat", engine=f"slice:{1 - owner}/2")  # it took it over
    at_work(run, tmp_path, engine=f"slice:{1 - owner}/2")
    with pytest.raises(Unfinished):
        at_work(run, tmp_path, engine=f"slice:{owner}/2")


def test_a_full_disk_ends_the_work_and_nothing_is_set_aside(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="No space left"):
        at_work(run, tmp_path, "a bat", fill)
    assert run.errors() == {}
    assert run.units("done") == UNITS[:1]


def test_a_model_that_cannot_be_loaded_sets_nothing_aside(run: Run) -> None:
    def load() -> Any:
        raise ExciseError("no such model")

    with pytest.raises(ExciseError, match="no such model"):
        work(run, Small(str(run.folder.parent)), load, {})
    assert run.errors() == {}


def test_ctrl_c_keeps_the_finished_blocks(run: Run, tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        at_work(run, tmp_path, "a bat", stop)
    assert (run.units("done"), len(run.records(UNITS[1]))) == (UNITS[:1], 16)


def test_a_refusal_is_a_result(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, unit: Unit, entry: Any) -> Any:
        if unit.concept == "bat":
            raise ExciseError("it knows no bats")
        return Empty()

    monkeypatch.setattr(making.Maker, "_made", refuse)
    at_work(run, tmp_path)
    assert run.units("done") == UNITS
    assert run.records(UNITS[1]) == []
    assert '"refused": "it knows no bats"' in (run.folder / "fits" / "none=bat.json").read_text()


def test_an_unfinished_run_of_an_earlier_version_is_refused(run: Run, tmp_path: Path) -> None:
    run.plan["schema"] = "excise.run/1"
    with pytest.raises(ExciseError, match="was begun by an earlier version of Excise and is not finished"):
        at_work(run, tmp_path)
    for unit in UNITS:
        (run.folder / "done").mkdir(exist_ok=True)
        (run.folder / "done" / unit.file).touch()
    at_work(run, tmp_path)
    assert not (tmp_path / "log").exists()


def test_items_have_one_file_and_one_name_each(tmp_path: Path) -> None:
    stage = making.Making(tmp_path, lambda: None)  # type: ignore[arg-type,return-value]
    unit = Unit("snce:k=10", "gun").file
    items = [
        Item("fit", unit),
        Item("search", "gun"),
        Item("attack", unit),
        Item("draw", unit, 0),
        Item("draw", unit, 1),
    ]
    assert len({stage.path(item) for item in items}) == len({stage.name(item) for item in items}) == 5


@pytest.mark.usefixtures("one_bundled_pipe")
def test_the_command_says_what_failed_and_exits_with_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from excise.app.bench.runs import report, start
    from excise.cli import app

    run = start(tmp_path / "run", "canvas", "quick", [], ["gun"], {"searches": False, "prompts": 1})

    def fail(*given: Any) -> None:
        raise RuntimeError("cuda is on fire")

    monkeypatch.setattr(making.Maker, "_fit", fail)
    told = CliRunner().invoke(app, ["bench", "resume", str(run.folder)])
    assert told.exit_code == 4
    assert "none on gun, fit: failed with RuntimeError: cuda is on fire" in told.output
    assert report(run)["methods"]["none"]["failed"] == {"gun": "failed with RuntimeError: cuda is on fire"}
    assert "not done, gun: failed with RuntimeError: cuda is on fire" in (run.folder / "report.html").read_text()
    assert run.units("failed") == [Unit("none", "gun")]
    monkeypatch.undo()
