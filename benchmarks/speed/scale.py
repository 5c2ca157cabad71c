"""What engines cost, how reading and training grow with the number of processes, and what large runs would take.

    python benchmarks/speed/scale.py --workers 1,2 --out docs/results/scale.json

Three things are measured, each in turns. Engines make items that do nothing but write their file: the seconds until one
item is made (start-up), and items per second after that. `excise neurons scan` reads prompts with the bundled model in
processes of one thread. `excise sae train --parallel` trains under torchrun, one rank per process. The last two have
the slope of log rate over log workers: 1 is linear growth. The engine `ray` is measured if Ray is installed.

GPU-hours of large runs are arithmetic from public rates of GPUs. Nothing of them was run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from marks import Marks

from excise.engine import run
from excise.files import write_atomic

COMMAND = "python benchmarks/speed/scale.py"
ITEMS = 400
FILES, PROMPTS = 8, 512
"""Files of prompts to scan, and prompts in each. A scan of files with one prompt is the start-up."""
VECTORS, BATCH, EXPANSION = 358_400, 1024, 8
_CHILD = "--child"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2", help="numbers of processes, such as 1,2,4,8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/results/scale.json"))
    parser.add_argument("--page", action="store_true", help="only rewrite the page from the file")
    options = parser.parse_args()
    from scale_page import page  # here, as workers of engines read this file too

    from excise.app.bench.provenance import provenance

    if options.rounds < 2:
        parser.error("quartiles need 2 rounds or more")
    if not options.page:
        workers = [int(text) for text in options.workers.split(",")]
        with tempfile.TemporaryDirectory() as folder:
            results: dict[str, Any] = {
                "engines": engines(max(workers), options.rounds),
                "reading": grown(reading(Path(folder)), workers, options.rounds),
                "training": {
                    division: grown(training(Path(folder), division), workers, options.rounds)
                    for division in ("data", "latents")
                },
            }
        results |= {"rounds": options.rounds, "items": ITEMS, "batch": BATCH, "expansion": EXPANSION}
        results |= provenance(f"{COMMAND} --workers {options.workers} --rounds {options.rounds}")
        write_atomic(options.out, json.dumps(results, indent=1) + "\n")
    results = json.loads(options.out.read_text())
    write_atomic(options.out.with_suffix(".md"), page(results))
    print(page(results))


def engines(workers: int, rounds: int) -> dict[str, Any]:
    """Return seconds of start-up and items per second of each engine, medians over rounds that take turns."""
    names = ["local", f"processes:{workers}", "slice:0/1", *(["ray"] if find_spec("ray") else [])]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, seen in found.items():
            one, all_ = (_in_process(name, workers, items) for items in (1, ITEMS))
            assert all_ > one, f"{name}: {ITEMS} items took no longer than one"
            seen.append((one, (ITEMS - 1) / (all_ - one)))
    return {
        name: {"start": statistics.median(s for s, _ in seen), "items": statistics.median(r for _, r in seen)}
        for name, seen in found.items()
    }


def _in_process(engine: str, workers: int, items: int) -> float:
    command = [sys.executable, __file__, _CHILD, engine, str(workers), str(items)]
    found = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))  # workers of Ray read Marks
    environment = {**os.environ, "PYTHONPATH": found}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return float(done.stdout.splitlines()[-1])


def child(engine: str, workers: int, items: int) -> None:
    """Make the items on the engine, and print the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        made = list(run(engine, Marks(folder), range(items), workers=workers if engine == "ray" else 1))
        seconds = time.perf_counter() - began
        assert [outcome.state for outcome in made] == ["made"] * items, made
    print(seconds)


def reading(folder: Path) -> Callable[[int], float]:
    """Return what measures prompts per second of `neurons scan` by workers. Its corpora are written to the folder."""
    from capturing import sentences

    for name, rows in (("one", 1), ("many", PROMPTS)):
        for n in range(FILES):
            file = folder / name / f"{n}.txt"
            file.parent.mkdir(exist_ok=True)
            file.write_text("\n".join(sentences(rows, seed=n)) + "\n")

    def seconds(corpus: str, workers: int) -> float:
        with tempfile.TemporaryDirectory() as out:
            return timed(
                "-m", "excise", "neurons", "scan", "--neurons", "930", "--prompts", str(folder / corpus),
                "--out", f"{out}/scan.json", "--engine", f"processes:{workers}",
            )  # fmt: skip

    return lambda workers: FILES * (PROMPTS - 1) / (seconds("many", workers) - seconds("one", workers))


def training(folder: Path, division: str) -> Callable[[int], float]:
    """Return what measures vectors per second of the training steps by ranks, from the training's own log."""
    from capturing import sentences

    prompts = folder / "train.txt"
    prompts.write_text("\n".join(sentences(2000)) + "\n")

    def rate(ranks: int) -> float:
        with tempfile.TemporaryDirectory() as out:
            timed(
                "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "excise", "sae",
                "train", "--prompts", str(prompts), "--tokens", str(VECTORS), "--batch", str(BATCH),
                "--expansion", str(EXPANSION), "--out", f"{out}/sae", "--parallel", f"{division}={ranks}",
            )  # fmt: skip
            log = [json.loads(line) for line in (Path(out) / "sae" / "log.jsonl").read_text().splitlines()]
        first, last = log[0], log[-1]
        assert last["seconds"] > first["seconds"], "the log has one line; train on more vectors"
        return float((last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"]))

    return rate


def timed(*arguments: str) -> float:
    """Run Python with the arguments, one thread a process, and return the seconds."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return time.perf_counter() - began


def grown(rate: Callable[[int], float], workers: Sequence[int], rounds: int) -> dict[str, Any]:
    """Return the rates by workers, medians over rounds that take turns, and the slope of log rate over log workers."""
    seen: dict[int, list[float]] = {n: [] for n in workers}
    for _ in range(rounds):
        for n in workers:
            seen[n].append(rate(n))
            print(f"{n} workers: {seen[n][-1]:,.0f} a second", flush=True)
    slopes = [exponent(workers, row) for row in zip(*seen.values(), strict=True)]
    low, middle, high = statistics.quantiles(slopes, n=4)
    return {
        "rates": {str(n): statistics.median(rates) for n, rates in seen.items()},
        "exponent": {"value": middle, "low": low, "high": high},
    }


def exponent(workers: Sequence[int], rates: Sequence[float]) -> float:
    """Return the slope of log rate over log workers."""
    return float(np.polyfit(np.log(workers), np.log(rates), 1)[0])


if __name__ == "__main__":
    child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])) if _CHILD in sys.argv else main()
