"""Run the mutants: `python -m tests.mutants [PART OF A FILE'S NAME ...]`. Exit code 1 if one survives without a reason.

Each mutant runs its tests in a separate process, forked from one that has imported the libraries, with the changed text
instead of its module. Nothing is written to the tree.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from tests.mutants import ROOT, Mutant, all_mutants

LEAST_KILLED = 0.95
CPU_SECONDS = 900
"""Limit on a process's computing time, since a mutant may loop for ever; other load on the machine does not count."""
FAILED, BROKEN_IMPORT = 1, 2
"""pytest's exit codes if a test fails, and if one cannot be collected."""


class Result(NamedTuple):
    """Outcome of a mutant, or of the tests without one (None)."""

    mutant: Mutant | None
    tests: tuple[str, ...]
    noticed: bool
    code: int
    log: str


class _Changed(SourceFileLoader):
    """Loader of a module from a text instead of its file."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self.text = text

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.text, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self.name, self.path, self.text = mutant.module, str(ROOT / mutant.file), mutant.source()

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        return spec_from_file_location(fullname, self.path, loader=_Changed(fullname, self.path, self.text))


def preload() -> None:
    """Import other libraries, which take long, once for all processes."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import diffusers
    import hypothesis
    import pytest
    import transformers

    imported = [diffusers.StableDiffusionPipeline, diffusers.DPMSolverMultistepScheduler, diffusers.DDIMScheduler]
    imported += [transformers.CLIPTextModel, transformers.CLIPTokenizer, hypothesis.given, pytest.main]
    assert not [name for name in sys.modules if name.split(".")[0] == "excise"], "a mutant would come too late"


def _child(mutant: Mutant | None, tests: tuple[str, ...], log: Path) -> int:
    """Return pytest's exit code in this forked process."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.dont_write_bytecode = True
    if mutant is not None:
        sys.meta_path.insert(0, _Finder(mutant))
    return int(pytest.main([*tests, "-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist"]))


def run(jobs: Iterable[tuple[Mutant | None, tuple[str, ...]]], at_once: int) -> Iterator[Result]:
    """Yield the results as processes end."""
    waiting, running = iter(jobs), dict[int, tuple[Mutant | None, tuple[str, ...], Path]]()
    with tempfile.TemporaryDirectory() as folder:
        count, more = 0, True
        while more or running:
            while more and len(running) < at_once:
                if (job := next(waiting, None)) is None:
                    more = False
                    break
                log = Path(folder) / f"{(count := count + 1)}.log"
                sys.stdout.flush()
                if (pid := os.fork()) == 0:
                    code = 70
                    try:
                        code = _child(*job, log)
                    finally:
                        os._exit(code)
                running[pid] = (*job, log)
            if running:
                pid, status = os.wait()
                mutant, tests, log = running.pop(pid)
                code = os.waitstatus_to_exitcode(status)
                noticed = code in (FAILED, BROKEN_IMPORT) or code < 0
                yield Result(mutant, tests, noticed, code, log.read_text(errors="replace") if log.exists() else "")


def main(names: list[str]) -> int:
    """Run the mutants whose file name contains one of `names`, or all, and print the survivors."""
    mutants = [m for m in all_mutants() if not names or any(name in m.file for name in names)]
    if not mutants:
        sys.exit(f"no mutated file has {' or '.join(map(repr, names))} in its name; see the tables in tests/mutants")
    for mutant in mutants:
        mutant.source()
    os.chdir(ROOT)
    at_once = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_once = int(os.environ.get("EXCISE_MUTANTS_AT_ONCE", at_once))
    preload()
    selections = dict.fromkeys(mutant.tests for mutant in mutants)
    print(f"{len(mutants)} mutants, {len(selections)} selections of tests, {at_once} at once", flush=True)
    broken = [r for r in run(((None, tests) for tests in selections), at_once) if r.code != 0]
    for result in broken:
        print(f"these tests fail without a mutant: {' '.join(result.tests)}\n{result.log}")
    if broken:
        return 1
    killed, wrong = 0, 0
    for n, result in enumerate(run(((mutant, mutant.tests) for mutant in mutants), at_once), 1):
        assert result.mutant is not None
        if n % 25 == 0:
            print(f"{n} of {len(mutants)}", flush=True)
        killed += result.noticed
        foreseen = bool(result.mutant.survives)
        if not result.noticed and result.code != 0:
            wrong += 1
            print(f"pytest could not be run (exit code {result.code}) on {result.mutant}\n{result.log}")
        elif not result.noticed:
            wrong += not foreseen
            print(f"{'survives' if foreseen else 'SURVIVES'}: {result.mutant}", result.mutant.survives, flush=True)
        elif foreseen:
            wrong += 1
            print(f"is noticed now, so remove the reason: {result.mutant}", flush=True)
    share = killed / len(mutants)
    print(f"{killed} of {len(mutants)} mutants were noticed ({share:.1%})")
    return int(wrong > 0 or share < LEAST_KILLED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
