"""Worker: claims units of a run, and generates, judges and records their pictures until nothing is left."""

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
from excise.bench.run import TRIES, Claim, Record, Run, Unit, checked_name
from excise.bench.suite import Case, Suite, checked_case, read_saved
from excise.drawn import Drawn
from excise.erasers import Eraser
from excise.erasers.artefact.verdict import WeakEraser
from excise.errors import ExciseError
from excise.files import sha256, write_atomic, write_once
from excise.methods.lookup import method, parsed, settings_of
from excise.pipeline import Pipeline, as_diffusers
from excise.sae import TopKSAE
from excise.sae import load as load_sae
from excise.sites.truncation import cuts, suppress_cut_warnings
from excise.step_progress import by_steps

HEARTBEAT = 10.0
"""Seconds between two signs of life."""
LOOK = 1.0
"""Seconds between two checks of the other workers."""


_DTYPE = re.compile(r"(?P<dtype>\w*float\d+) on [^,;]+")
"""Dtype in the text of `drawn_with`."""


@dataclass(frozen=True)
class Entry:
    """Method in a run, with its label and its settings other than the defaults."""

    label: str
    method: str
    settings: Mapping[str, Any]

    @property
    def configuration(self) -> dict[str, Any]:
        """Every setting of the method as JSON, as its defaults may differ in another version."""
        return dict(json.loads(json.dumps(vars(method(self.method).Config(**self.settings)))))

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Parse `snce` or `snce:k=10,lam=2`. Raises ExciseError for an unknown method or setting, or a bad value."""
        if odd := set(text) & set("&!@"):
            raise ExciseError(f"{text} cannot be used in a run: {odd.pop()!r} is reserved for file names; leave it out")
        return cls(text, *parsed(text))


def work(
    run: Run,
    suite: Suite,
    load: Callable[[], Any],
    defaults: Mapping[str, Mapping[str, Any]],
    progress: Callable[[float], Any] | None = None,
) -> None:
    """Do the rest of a run.

    A failed unit is left to other workers, and this one continues with the next. Ctrl-C hands the current unit back.
    Returns once every unit is done or held by another live worker.

    Args:
        load: Returns the pipeline; called only if there is work.
        defaults: Settings of each method on this machine, such as the path of its SAE.
        progress: Called after each denoising step with the number of pictures, or fraction of one, that it completed.

    Raises Unfinished if a unit failed, and ExciseError at once if the disk refuses to write.
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
    """Error for failed units that no worker holds. The message lists them with their errors."""

    def __init__(self, run: Run, units: Sequence[Unit]) -> None:
        errors = run.errors()
        aside = set(run.units("failed"))
        lines = []
        for unit in units:
            last = (errors.get(unit) or ["left by its worker"])[-1]
            tries = f"set aside after {TRIES} tries" if unit in aside else f"try {len(errors.get(unit, []))} of {TRIES}"
            lines.append(f"{unit.method} on {unit.concept}: {last} ({tries})")
        more = f" and {len(lines) - 5} more;" if len(lines) > 5 else ""
        super().__init__(
            f"{len(lines)} units are not done: {'; '.join(lines[:5])};{more} details in {run.folder / 'tries'}; "
            f"continue with `excise bench resume {run.folder}`, and add --retry for units that were set aside"
        )


def _next(run: Run, tried: Collection[Unit]) -> Claim | None:
    """Claim the next unit. Returns None if there is nothing left to do or to wait for.

    Units held by others are waited for until each holder gives a sign of life; those without one are taken over.
    """
    watched = run.signs()
    while (claim := run.claim(tried)) is None:
        now = run.signs()
        watched = {name: sign for name, sign in watched.items() if now.get(name) == sign}
        # A unit that another worker has just put back can be claimed.
        if not watched and set(run.units("todo")) <= set(tried):
            return None
        time.sleep(LOOK)
    return claim


def _disk_refuses(error: Exception) -> bool:
    """Return whether the disk caused the error, so that every other unit would fail too."""
    causes = (error, error.__cause__, error.__context__)
    full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
    return any(isinstance(cause, OSError) and cause.errno in full for cause in causes)


def _do(
    run: Run, claim: Claim, suite: Suite, pipe: Pipeline, defaults: Mapping[str, Mapping[str, Any]], progress: Any
) -> None:
    unit = claim.unit
    done = {record["case"] for record in run.records(unit)}
    entry = Entry.parse(unit.method)
    chosen = settings_of(entry.method, defaults)
    try:
        eraser = _eraser(run, unit, suite, pipe, entry, chosen)
    except ExciseError as error:
        # That a method cannot erase this concept is a result too, and listed in the report.
        _write_json(run, "fits", unit, {"refused": str(error)})
        return
    size = run.plan["size"]
    suppress_cut_warnings(pipe)  # each record states what part of its prompt is truncated
    _search(run, unit.concept, lambda: suite.search(pipe, unit.concept, size))
    with eraser.attach(pipe, sae=_sae(eraser, {**chosen, **entry.settings})):
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
    """Load the eraser if this run has fitted it, else fit it and record the cost."""
    folder = run.folder / "erasers" / unit.file
    if (folder / "manifest.json").exists():
        return Eraser.load(folder)
    chosen = method(entry.method)
    _forget_peak()
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakEraser)  # recorded below
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


def _sae(eraser: Eraser, settings: Mapping[str, Any]) -> TopKSAE | None:
    """Return the SAE that the eraser needs when it is attached, from its method's settings, or None."""
    if not any(edit.needs_sae for edit in eraser.edits):
        return None
    folder = next((value for name, value in settings.items() if name.rpartition(".")[2] == "sae" and value), None)
    return None if folder is None else load_sae(Path(folder))


def drawn_with(pipe: Pipeline) -> str:
    """Describe in one line the pipeline, its sampler, dtype, device and safety checker, and the library versions."""
    versions = " ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    sampler = type(as_diffusers(pipe).scheduler).__name__
    checker = getattr(pipe, "safety_checker", None)
    checked = "no safety checker" if checker is None else type(checker).__name__
    return f"{type(pipe).__name__}, {sampler}, {_dtype(pipe)} on {as_diffusers(pipe).device}, {checked}; {versions}"


def refuse_other_dtype(run: Run, pipe: Pipeline) -> None:
    """Raise ExciseError if pictures of the run were generated in another dtype than the pipeline's.

    By default the dtype depends on the device; in earlier versions it was float16 on every CUDA device.
    """
    for path in sorted((run.folder / "fits").glob("*.json")):
        before = _DTYPE.search(str(read_saved(path, dict).get("drawn_with", "")))
        if before is not None and before["dtype"] != _dtype(pipe):
            raise ExciseError(
                f"{run.folder} has pictures in {before[0]}, and would continue in {_dtype(pipe)} on "
                f"{as_diffusers(pipe).device}; continue on the first device, or start another run (with --dtype "
                f"{before['dtype']} for the same precision)"
            )


def _dtype(pipe: Pipeline) -> str:
    return str(as_diffusers(pipe).dtype).removeprefix("torch.")


def _peak_memory() -> int | None:
    """Return the process's peak memory in bytes since `_forget_peak`, or since its start if that has no effect.

    Returns None if the system does not report it.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):  # not Linux
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forget_peak() -> None:
    """Reset the process's peak memory and return freed memory to the system, to measure each method separately."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # glibc only
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
    """Save pictures and return their records, with the detectors' verdicts on sound pictures.

    If a detector fails or a picture is broken, the record states that instead. `lost` maps prompts to their truncated
    ends.
    """
    sound = [n for n, fault in enumerate(drawn.faults) if fault is None]
    verdicts: list[dict[str, Any]] = [{"fault": fault} for fault in drawn.faults]
    try:
        seen = suite.judge([cases[n] for n in sound], drawn.pixels[sound]) if sound else []
        for n, verdict in zip(sound, seen, strict=True):
            verdicts[n]["seen"] = verdict
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
    """Return every case of a unit known so far: the suite's, and those found by attacks."""
    return suite.cases(unit.concept, run.plan["size"]) + _found(run, unit.concept) + _found(run, unit.file)


def is_searched(run: Run, name: str) -> bool:
    """Return whether the search of this name, a concept's or a unit's, is done."""
    return _searched(run, name).exists()


def _found(run: Run, name: str) -> list[Case]:
    """Return the cases that a search saved in the run's folder; none before it is done."""
    path = _searched(run, name)
    return [Case.from_json(row) for row in read_saved(path, list)] if path.exists() else []


def _search(run: Run, name: str, search: Callable[[], list[Case]]) -> None:
    """Run a search and save its cases in the run's folder, unless that is done.

    Two workers that search at the same time both continue with what the first one saved.
    """
    path = _searched(run, name)
    if not path.exists():
        write_once(path, json.dumps([asdict(case) for case in search()], indent=1) + "\n")


def _searched(run: Run, name: str) -> Path:
    return run.folder / "searched" / f"{name}.json"


def picture_of(run: Run, unit: Unit, case: str) -> Path:
    """Return the path of a case's picture.

    Raises ExciseError for a case id that is not the name of a file, and for a link: a run from a stranger could write
    and read outside its folder.
    """
    folder = run.folder / "pictures" / checked_name(unit.file)
    path = folder / f"{checked_case(case)}.png"
    for link in (folder, path):
        if link.is_symlink():
            raise ExciseError(f"{link} is a link; a run may hold none")
    return path


def _write_json(run: Run, kind: str, unit: Unit, data: Mapping[str, Any]) -> None:
    write_atomic(run.folder / kind / f"{unit.file}.json", json.dumps(data, indent=1, sort_keys=True) + "\n")


@contextmanager
def _signs_of_life(claim: Claim) -> Iterator[None]:
    """Touch the claim every few seconds while the context lasts, however long a step takes."""
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
