"""A worker: claims units of a run and draws, judges and records their pictures until nothing is left."""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from excise.bench.pictures import png
from excise.bench.run import TRIES, Claim, Record, Run, Unit
from excise.bench.suite import Case, Suite
from excise.drawn import Drawn
from excise.erasers import Eraser
from excise.erasers.artefact.verdict import WeakEraser
from excise.errors import ExciseError
from excise.files import sha256, write_atomic, write_once
from excise.methods.lookup import method, parsed, settings_of
from excise.pipeline import Pipeline, as_diffusers
from excise.sites.truncation import cuts, suppress_cut_warnings
from excise.step_progress import by_steps

HEARTBEAT = 10.0
"""Seconds between two signs of life."""
LOOK = 1.0
"""Seconds between two looks at what others are doing."""


_DTYPE = re.compile(r"(?P<dtype>\w*float\d+) on [^,;]+")
"""In what `drawn_with` writes."""


@dataclass(frozen=True)
class Entry:
    """A method as it takes part in a run: under a label, with settings other than its defaults."""

    label: str
    method: str
    settings: Mapping[str, Any]

    @property
    def configuration(self) -> dict[str, Any]:
        """Every setting of the method, as json: its defaults may differ in another version."""
        return dict(json.loads(json.dumps(vars(method(self.method).Config(**self.settings)))))

    @classmethod
    def parse(cls, text: str) -> Entry:
        """`snce` or `snce:k=10,lam=2`. Raises ExciseError for an unknown method or setting, or an impossible value."""
        if odd := set(text) & set("&!@"):
            raise ExciseError(
                f"{text} cannot be the name of a row: it has {odd.pop()!r}, which file names are made with"
            )
        return cls(text, *parsed(text))


def work(
    run: Run,
    suite: Suite,
    load: Callable[[], Any],
    defaults: Mapping[str, Mapping[str, Any]],
    progress: Callable[[float], Any] | None = None,
) -> None:
    """Do what is left of `run`, if there is anything, with the pipeline that `load` gives.

    `defaults` are settings of a method on this machine (where its SAE lies). `progress` is called after each
    denoising step with the share of pictures that it drew. Ctrl-C hands the unit back.

    A unit that fails is left to other workers, and this one goes on with the next. Returns only where every unit is
    done, or another worker that is alive is at it. Raises Unfinished where one failed, and ExciseError at once where
    the disk refuses.
    """
    pipe = None
    tried: set[Unit] = set()
    while (claim := _next(run, tried)) is not None:
        with _signs_of_life(claim):
            try:
                pipe = load() if pipe is None else pipe
            except BaseException:
                claim.release()
                raise
            try:
                _do(run, claim, suite, pipe, defaults, progress)
            except BaseException as error:
                if not isinstance(error, Exception) or _disk_refuses(error):
                    claim.release()
                    raise
                claim.fail(error)
                tried.add(claim.unit)
            else:
                claim.finish()
    if open_units := [*run.units("failed"), *run.units("todo")]:
        raise Unfinished(run, open_units)


class Unfinished(ExciseError):
    """Units of a run failed, and no worker is at them: the message says which and why."""

    def __init__(self, run: Run, units: Sequence[Unit]) -> None:
        errors = run.errors()
        aside = set(run.units("failed"))
        told = []
        for unit in units:
            last = (errors.get(unit) or ["left by its worker"])[-1]
            tries = f"set aside after {TRIES} tries" if unit in aside else f"try {len(errors.get(unit, []))} of {TRIES}"
            told.append(f"{unit.method} on {unit.concept}: {last} ({tries})")
        more = f" and {len(told) - 5} more;" if len(told) > 5 else ""
        super().__init__(
            f"{len(told)} units are not done: {'; '.join(told[:5])};{more} details in {run.folder / 'tries'}; "
            f"`excise bench resume {run.folder}` goes on, with --retry also at what was set aside"
        )


def _next(run: Run, tried: Collection[Unit]) -> Claim | None:
    """A unit to work on, or None where there is none to wait for: what others hold is waited for until each has given
    a sign of life, and taken over where one gives none."""
    watched = run.signs()
    while (claim := run.claim(tried)) is None:
        now = run.signs()
        watched = {name: sign for name, sign in watched.items() if now.get(name) == sign}
        # What another worker has just put back is there to be claimed.
        if not watched and set(run.units("todo")) <= set(tried):
            return None
        time.sleep(LOOK)
    return claim


def _disk_refuses(error: Exception) -> bool:
    """Whether it is the disk's fault, as with every other unit, and not this unit's."""
    causes = (error, error.__cause__, error.__context__)
    full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
    return any(isinstance(cause, OSError) and cause.errno in full for cause in causes)


def _do(
    run: Run, claim: Claim, suite: Suite, pipe: Pipeline, defaults: Mapping[str, Mapping[str, Any]], progress: Any
) -> None:
    unit = claim.unit
    done = {record["case"] for record in run.records(unit)}
    entry = Entry.parse(unit.method)
    try:
        eraser = _eraser(run, unit, suite, pipe, entry, settings_of(entry.method, defaults))
    except ExciseError as error:
        # A method that cannot erase this concept is a result too; the report lists it.
        _write_json(run, "fits", unit, {"refused": str(error)})
        return
    size = run.plan["size"]
    suppress_cut_warnings(pipe)  # each record says what of its prompt is lost
    _search(run, unit.concept, lambda: suite.search(pipe, unit.concept, size))
    with eraser.attach(pipe):
        known = partial(suite.attack, pipe) if eraser.edits else suite.baseline
        _search(run, unit.file, lambda: known(unit.concept, size))
        left = [case for case in all_cases(run, suite, unit) if case.id not in done]
        for start in range(0, len(left), suite.batch):
            some = left[start : start + suite.batch]
            began = time.perf_counter()
            with by_steps(pipe, progress, len(some)):
                made = suite.draw(pipe, some)
            seconds = (time.perf_counter() - began) / len(some)
            drawn = made if isinstance(made, Drawn) else Drawn.of(made)
            lost = {cut.prompt: cut.lost for cut in cuts(pipe, [case.prompt for case in some])}
            claim.write(_records(run, unit, suite, some, drawn, seconds, lost))


def _eraser(run: Run, unit: Unit, suite: Suite, pipe: Pipeline, entry: Entry, defaults: Mapping[str, Any]) -> Eraser:
    """The eraser this run fitted already, or a fresh one with what its fitting cost."""
    folder = run.folder / "erasers" / unit.file
    if (folder / "manifest.json").exists():
        return Eraser.load(folder)
    chosen = method(entry.method)
    _forget_peak()
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakEraser)  # the fit's record says so
        eraser = chosen.fit(pipe, suite.concept(unit.concept), chosen.Config(**{**defaults, **entry.settings}))
    cost: dict[str, Any] = {"seconds": time.perf_counter() - began, "bytes": 0}
    if eraser.edits:
        eraser.save(folder)
        cost["bytes"] = sum(file.stat().st_size for file in folder.iterdir())
    cost["peak_memory"] = _peak_memory()
    cost["drawn_with"] = drawn_with(pipe)
    cost["weak"] = list(eraser.weak)
    _write_json(run, "fits", unit, cost)
    return eraser


def drawn_with(pipe: Pipeline) -> str:
    """The pipeline, its sampler, dtype and device, its safety checker, and the versions that ran them, in one line."""
    versions = " ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    sampler = type(as_diffusers(pipe).scheduler).__name__
    checker = getattr(pipe, "safety_checker", None)
    checked = "no safety checker" if checker is None else type(checker).__name__
    return f"{type(pipe).__name__}, {sampler}, {_dtype(pipe)} on {as_diffusers(pipe).device}, {checked}; {versions}"


def refuse_other_dtype(run: Run, pipe: Pipeline) -> None:
    """Raise ExciseError where pictures of the run were drawn in another dtype than the pipeline's.

    The dtype follows the device where none was named, and was float16 on every CUDA device in earlier versions.
    """
    for path in sorted((run.folder / "fits").glob("*.json")):
        before = _DTYPE.search(json.loads(path.read_text()).get("drawn_with", ""))
        if before is not None and before["dtype"] != _dtype(pipe):
            raise ExciseError(
                f"{run.folder} was drawn in {before[0]} so far, and would go on in {_dtype(pipe)} on "
                f"{as_diffusers(pipe).device}; start another run (--dtype {before['dtype']} draws as this one did), or "
                "go on where it was begun"
            )


def _dtype(pipe: Pipeline) -> str:
    return str(as_diffusers(pipe).dtype).removeprefix("torch.")


def _peak_memory() -> int | None:
    """Bytes, of the whole process since `_forget_peak`, or since it started where the system does not forget: what a
    machine must have to do this. None where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):  # no Linux
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forget_peak() -> None:
    """Have the system count the process's peak anew, without what is free already but not given back, so that a method
    does not answer for the one before it."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # of glibc alone
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _records(
    run: Run,
    unit: Unit,
    suite: Suite,
    cases: list[Case],
    drawn: Drawn,
    seconds: float,
    lost: Mapping[str, str],
) -> list[Record]:
    """Save pictures and say what the detectors see in those that are sound; where one fails, or a picture is broken,
    the record says that and no verdict. `lost` is, by prompt, the end that the model does not read."""
    sound = [n for n, fault in enumerate(drawn.faults) if fault is None]
    verdicts: list[dict[str, Any]] = [{"fault": fault} for fault in drawn.faults]
    try:
        seen = suite.judge([cases[n] for n in sound], drawn.pixels[sound]) if sound else []
        for n, said in zip(sound, seen, strict=True):
            verdicts[n]["seen"] = said
    except Exception as error:
        for n in sound:
            verdicts[n] = {"fault": None, "error": f"{type(error).__name__}: {error}"}
    records = []
    for case, picture, verdict in zip(cases, drawn.pixels, verdicts, strict=True):
        write_atomic(picture_of(run, unit, case.id), png(picture))
        records.append(
            {
                "method": unit.method,
                "concept": unit.concept,
                "case": case.id,
                "family": case.family,
                "prompt": case.prompt,
                "seed": case.seed,
                "generator": "cpu",
                "picture": sha256(picture.tobytes()),
                "seconds": round(seconds, 4),
                **({"lost": lost[case.prompt]} if case.prompt in lost else {}),
                **verdict,
            }
        )
    return records


def all_cases(run: Run, suite: Suite, unit: Unit) -> list[Case]:
    """Every case of a unit that is known so far: the suite's own, and those that attacks have found."""
    return suite.cases(unit.concept, run.plan["size"]) + _found(run, unit.concept) + _found(run, unit.file)


def is_searched(run: Run, name: str) -> bool:
    """Whether the search of that name, a concept's or a unit's, was made."""
    return _searched(run, name).exists()


def _found(run: Run, name: str) -> list[Case]:
    """The cases that a search left in the run's folder; none where it was not made yet."""
    path = _searched(run, name)
    return [Case.from_json(row) for row in json.loads(path.read_text())] if path.exists() else []


def _search(run: Run, name: str, search: Callable[[], list[Case]]) -> None:
    """Make a search, and keep what it finds in the run's folder, unless that was done before.

    Two workers that search at the same moment go on with what the first one found."""
    path = _searched(run, name)
    if not path.exists():
        write_once(path, json.dumps([asdict(case) for case in search()], indent=1) + "\n")


def _searched(run: Run, name: str) -> Path:
    return run.folder / "searched" / f"{name}.json"


def picture_of(run: Run, unit: Unit, case: str) -> Path:
    """Where a case's picture lies."""
    return run.folder / "pictures" / unit.file / f"{case}.png"


def _write_json(run: Run, kind: str, unit: Unit, data: Mapping[str, Any]) -> None:
    write_atomic(run.folder / kind / f"{unit.file}.json", json.dumps(data, indent=1, sort_keys=True) + "\n")


@contextmanager
def _signs_of_life(claim: Claim) -> Iterator[None]:
    """Touch the claim every few seconds, however long a single step takes."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT):
            claim.alive()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
