"""Time and peak memory of training an SAE, by the number of vectors and of latents.

    python benchmarks/speed/scaling.py --work build/sae_training --out docs/results/scaling.json

Every run is a separate process. It uses the vectors of `sae_training.py` (width 768, which are made first if missing)
in batches of 4096, repeated as needed. The script prints the slopes of log time and log peak memory over log N and over
log m: 1 is linear, 0 is flat. The time is that of the steps. The memory is the process's peak; the vectors in memory
and torch are its constant part.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_training import features_in

from excise.app.bench.provenance import provenance
from excise.files import write_atomic
from excise.sae import TrainConfig, train

VECTORS = (10_000, 100_000, 1_000_000, 10_000_000)
LATENTS = (768, 3072, 12_288, 65_280)
OF_LATENTS, OF_VECTORS = 768, 100_000
"""Number of latents while the vectors grow, and of vectors while the latents grow."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/sae_training"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/scaling.json"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = features_in(options.work)
    if options.one:
        run(data, **json.loads(options.one))
        return
    results = provenance("python benchmarks/speed/scaling.py", bundled=False)
    results |= {"of_latents": OF_LATENTS, "of_vectors": OF_VECTORS}
    results["vectors"] = grown(data, "n", VECTORS, {"m": OF_LATENTS, "threads": options.threads})
    results["latents"] = grown(data, "m", LATENTS, {"n": OF_VECTORS, "threads": options.threads})
    write_atomic(options.out, json.dumps(results, indent=1) + "\n")


def grown(data: Path, name: str, values: Sequence[int], others: Mapping[str, int]) -> dict[str, Any]:
    """Return a row for every value, and the slopes over them."""
    rows: list[dict[str, Any]] = []
    for value in values:
        command = [sys.executable, __file__, "--work", str(data.parent), "--one", json.dumps({name: value, **others})]
        printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1]
        rows.append({name: value, **json.loads(printed)})
        row = rows[-1]
        print(f"{name} = {value:>9}: {row['seconds']:8.1f} s, {row['peak'] / 1e6:6.0f} MB", flush=True)
    slopes = {
        key: float(np.polyfit(np.log([row[name] for row in rows]), np.log([row[key] for row in rows]), 1)[0])
        for key in ("seconds", "peak")
    }
    print(f"time ~ {name}^{slopes['seconds']:.2f}, memory ~ {name}^{slopes['peak']:.2f}", flush=True)
    return {"rows": rows, "slopes": slopes}


def run(data: Path, n: int, m: int, threads: int) -> None:
    """Train once, and print the seconds of the steps and the peak memory as JSON."""
    torch.set_num_threads(threads)
    vectors = torch.load(data, mmap=True, weights_only=True)
    config = TrainConfig(expansion=m // vectors.shape[1], tokens=n, alpha=0, log_every=1)
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train(vectors, config, Path(folder) / "sae", progress=lambda line: seconds.append(line.seconds))
    peak = 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    print(json.dumps({"seconds": seconds[-1], "peak": peak, "steps": len(seconds)}))


if __name__ == "__main__":
    main()
