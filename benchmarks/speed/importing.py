"""Time to import the code that reads an eraser, compared with torch and safetensors, and to print `excise --help`.

    python benchmarks/speed/importing.py --rounds 15 --out docs/results/importing.json

Every figure is from fresh processes, one of each kind in turn. A first process of each kind is not counted: it fills
the disk's cache and writes the .pyc files. Imports are timed inside the process, `--help` and an empty Python as whole
processes. The script reports wall-clock and processor seconds; other load on the machine hardly affects the latter.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from timing import compared

from excise.app.bench.provenance import provenance
from excise.files import write_atomic

BASE, OURS = "import torch, safetensors.torch", "import excise.erasers.artefact.record"
CODE = """import sys, time
clock, processor = time.perf_counter(), time.process_time()
{}
print(time.perf_counter() - clock, time.process_time() - processor, len(sys.modules))"""
GOAL = 1.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("docs/results/importing.json"))
    options = parser.parse_args()
    results: dict[str, Any] = {
        **provenance(f"python benchmarks/speed/importing.py --rounds {options.rounds}", bundled=False),
        **measured(options.rounds),
    }
    write_atomic(options.out, json.dumps(results, indent=1) + "\n")
    for kind in ("clock", "processor"):
        found = results[kind]
        print(f"{kind}: {OURS} {found['ratio']:.2f} times {BASE} (goal: at most {GOAL}); --help {found['help']:.2f} s")


def measured(rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ("torch", "record", "help", "python")}
    modules: dict[str, int] = {}
    for counted in range(-1, rounds):
        found = {}
        for name, statement in (("torch", BASE), ("record", OURS)):
            found[name], modules[name] = imported(statement)
        found["help"] = whole("-m", "excise", "--help")
        found["python"] = whole("-c", "pass")
        for name, pair in found.items():
            if counted >= 0:
                seconds[name].append(pair)
    results: dict[str, Any] = {"goal": GOAL, "modules": modules}
    for n, kind in enumerate(("clock", "processor")):
        each = {name: [pair[n] for pair in pairs] for name, pairs in seconds.items()}
        middle = {name: statistics.median(values) for name, values in each.items()}
        ratio = compared(each["record"], each["torch"])
        results[kind] = {
            "ratio": middle["record"] / middle["torch"],
            "low": ratio["low"],
            "high": ratio["high"],
            **middle,
        }
    return results


def imported(statement: str) -> tuple[tuple[float, float], int]:
    """Return the seconds of an import in a fresh process, and the number of loaded modules after it."""
    done = subprocess.run([sys.executable, "-c", CODE.format(statement)], check=True, capture_output=True, text=True)
    clock, processor, modules = done.stdout.split()
    return (float(clock), float(processor)), int(modules)


def whole(*words: str) -> tuple[float, float]:
    """Return the seconds of a fresh Python process."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    clock, after = time.perf_counter() - began, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return clock, spent


if __name__ == "__main__":
    main()
