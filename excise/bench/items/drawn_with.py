"""What a run's pictures were generated with, and what a method's fit needs of memory."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from excise.bench.run import Run
from excise.bench.suite import read_saved
from excise.errors import ExciseError
from excise.pipeline import Pipeline, as_diffusers

_DTYPE = re.compile(r"(?P<dtype>\w*float\d+) on [^,;]+")
"""Dtype in the text of `drawn_with`."""


def drawn_with(pipe: Pipeline, sampler: str | None = None) -> str:
    """Describe in one line the pipeline, its sampler, dtype, hardware and safety checker, and the library versions.

    `sampler` names the one that a suite puts in its place. Pictures of one prompt, seed and batch can be expected to
    have the same bits only if this line is the same.
    """
    versions = " ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    sampler = sampler or type(as_diffusers(pipe).scheduler).__name__
    checker = getattr(pipe, "safety_checker", None)
    checked = "no safety checker" if checker is None else type(checker).__name__
    device = torch.device(as_diffusers(pipe).device)
    place = f"{_dtype(pipe)} on {device.type}, {_hardware(device, _dtype(pipe))}"
    return f"{type(pipe).__name__}, {sampler}, {place}, {checked}; {versions}"


def unlike(one: str, other: str) -> str:
    """Describe how two lines of `drawn_with` differ, or return "" if they do not. An earlier version's is empty."""
    if one == other:
        return ""
    if not (one and other):
        return "one of them by an earlier version, which did not state its hardware"
    ours, theirs = (re.split(r"[,;] ", line) for line in (one, other))
    only = [", ".join(part for part in a if part not in b) for a, b in ((ours, theirs), (theirs, ours))]
    return f"{only[0] or 'nothing'} against {only[1] or 'nothing'}"


def _hardware(device: torch.device, dtype: str) -> str:
    """Describe what decides the bits of sums and products: the GPU and its settings, or the processor and threads."""
    if device.type == "cuda":
        cudnn: Any = torch.backends.cudnn
        products, convolutions = (
            _precision(part) for part in (torch.backends.cuda.matmul, getattr(cudnn, "conv", cudnn))
        )
        settings = "".join(f" {name}" for name in ("deterministic", "benchmark") if getattr(cudnn, name))
        return (
            f"{torch.cuda.get_device_name(device)}, products in {products}, convolutions in {convolutions}, "
            f"cuDNN {cudnn.version()}{settings}"
        )
    name, units = _processor()
    parts: list[str] = [name, torch.backends.cpu.get_cpu_capability(), f"threads {torch.get_num_threads()}"]
    if dtype == "bfloat16":
        parts.insert(2, f"bfloat16 by {' and '.join(units) or 'no unit of its own'}")
    return ", ".join(parts)


def _precision(part: object) -> str:
    """Return the precision in which a part of torch's CUDA backend multiplies float32: tf32, bf16 or float32."""
    found = getattr(part, "fp32_precision", None)  # torch 2.9 or newer
    if found is None:
        found = "tf32" if getattr(part, "allow_tf32", False) else ""
    return found if found in ("tf32", "bf16") else "float32"


_UNITS = ("amx_bf16", "avx512_bf16", "bf16", "svebf16")
"""Names of processors' bfloat16 units in the kernel's list of their features."""


def _processor() -> tuple[str, list[str]]:
    """Return the processor's name and its bfloat16 units, as far as the system states them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        text = ""
    found: dict[str, str] = dict(re.findall(r"^(model name|flags|Features)\s*:\s*(.*)$", text, re.MULTILINE))
    features = found.get("flags", found.get("Features", "")).split()
    name = found.get("model name") or platform.processor() or platform.machine()
    return re.sub(r"[,;]\s*", " ", name), [unit for unit in _UNITS if unit in features]


def refuse_other_dtype(run: Run, pipe: Pipeline) -> None:
    """Raise ExciseError if pictures of the run were generated in another dtype than the pipeline's.

    By default the dtype depends on the device; in earlier versions it was float16 on every CUDA device.
    """
    for path in sorted((run.folder / "fits").glob("*.json")):
        before = _DTYPE.search(str(read_saved(path, dict).get("drawn_with", "")))
        if before is not None and before["dtype"] != _dtype(pipe):
            raise ExciseError(
                f"{run.where()} has pictures in {before[0]}, and would continue in {_dtype(pipe)} on "
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
