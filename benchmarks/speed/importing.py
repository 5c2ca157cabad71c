"""How long it takes to import what reads an eraser, beside torch and safetensors alone, and to print `excise --help`.

    python benchmarks/speed/importing.py --rounds 15 --out docs/results/importing.json

Every figure is of fresh processes, one of each kind in turn, after one of each that is not counted (it fills the disk's
cache and writes the .pyc files). Imports are timed inside the process, `--help` and an empty Python as whole processes.
Seconds are given by the clock and of the processor: the second hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from timing import beside

from excise.bench.machine import machine
from excise.files import write_atomic

BASE, OWN = "import torch, safetensors.torch", "import excise.erasers.artefact.record"
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
    told: dict[str, Any] = {
        "command": f"python benchmarks/speed/importing.py --rounds {options.rounds}",
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        **measured(options.rounds),
    }
    write_atomic(options.out, json.dumps(told, indent=1) + "\n")
    for kind in ("clock", "processor"):
        own = told[kind]
        print(f"{kind}: {OWN} {own['ratio']:.2f} times {BASE} (goal: at most {GOAL}); --help {own['help']:.2f} s")


def measured(rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ("torch", "record", "help", "python")}
    modules: dict[str, int] = {}
    for counted in range(-1, rounds):
        found = {}
        for name, statement in (("torch", BASE), ("record", OWN)):
            found[name], modules[name] = imported(statement)
        found["help"] = whole("-m", "excise", "--help")
        found["python"] = whole("-c", "pass")
        for name, pair in found.items():
            if counted >= 0:
                seconds[name].append(pair)
    told: dict[str, Any] = {"goal": GOAL, "modules": modules}
    for n, kind in enumerate(("clock", "processor")):
        each = {name: [pair[n] for pair in pairs] for name, pairs in seconds.items()}
        middle = {name: statistics.median(values) for name, values in each.items()}
        apart = beside(each["record"], each["torch"])
        told[kind] = {"ratio": middle["record"] / middle["torch"], "low": apart["low"], "high": apart["high"], **middle}
    return told


def imported(statement: str) -> tuple[tuple[float, float], int]:
    """Seconds that an import takes in a fresh process, and how many modules are loaded after it."""
    done = subprocess.run([sys.executable, "-c", CODE.format(statement)], check=True, capture_output=True, text=True)
    clock, processor, modules = done.stdout.split()
    return (float(clock), float(processor)), int(modules)


def whole(*words: str) -> tuple[float, float]:
    """Seconds of a fresh Python process."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    clock, after = time.perf_counter() - began, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return clock, spent


if __name__ == "__main__":
    main()
