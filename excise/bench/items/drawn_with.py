"""What a run's pictures were generated with, and what a method's fit needs of memory."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from excise.bench.run import Run
from excise.bench.suite import read_saved
from excise.errors import ExciseError
from excise.pipeline import Pipeline, as_diffusers

_DTYPE = re.compile(r"(?P<dtype>\w*float\d+) on [^,;]+")
"""Dtype in the text of `drawn_with`."""


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


def peak_memory() -> int | None:
    """Return the process's peak memory in bytes since `forget_peak`, or since its start if that has no effect.

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


def forget_peak() -> None:
    """Reset the process's peak memory and return freed memory to the system, to measure each method separately."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
