"""Training speed of a TopK SAE: Excise, plain PyTorch, SAELens, sparsify and overcomplete.

    python benchmarks/speed/sae_training.py --out docs/results/sae_training.json

Every library trains in its own process and environment (`sae_peer.py`), on the same vectors: states of the bundled text
encoder on its corpus, with three layers side by side, which makes 768 values. One process at a time takes a few steps,
then the next one, for several rounds. Tokens a second are the median round's, and ratios are medians over rounds.

The roofline is the time of 2dm + 8dk operations a vector at the speed at which this machine multiplies two matrices of
the encoder's shape. This is measured in every round, because cores slow down as they heat up. `fvu` and `silent`
(latents that never fire) are measured on held-out vectors after all rounds, when every library has seen the same
number.

No library revives dead latents in so few steps, so Excise's auxiliary loss is off; a separate row measures its cost. A
learning rate does not mean the same to libraries whose initial weights have different lengths. So at the first width,
each library is trained at several rates, and the lowest FVU counts. Excise and the best peer are then trained with more
seeds, each at its best rate. Existing results are not measured again.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timing import compared

from excise import reference
from excise.app.bench.provenance import provenance
from excise.errors import ExciseError
from excise.files import write_atomic
from excise.sites import Site, capture

LAYERS = (1, 3, 5)
WIDTH, K, LR = 768, 32, 4e-4
RATES, RATED = (4e-4, 1e-3, 2e-3, 4e-3), 64
"""Learning rates to try with every library, and the number of steps."""
SEEDS = (1, 2, 3, 4)
"""Further seeds for the best two libraries."""
VECTORS = 106_496
"""Number of vectors; `sae_peer.py` holds some of them out."""
PEERS = {
    "saelens": ("sae-lens==6.54.12",),
    "sparsify": ("eai-sparsify==1.3.3",),
    "overcomplete": ("overcomplete==0.3.0", "matplotlib<3.9"),
}
"""Packages to install for each, in addition to our torch."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "excise": ("excise", {"alpha": 0}),
    "excise, shortlist 8": ("excise", {"alpha": 0, "shortlist": 8}),
    "excise, bfloat16": ("excise", {"alpha": 0, "precision": "bfloat16"}),
    "excise, auxiliary loss": ("excise", {}),
    "dense PyTorch": ("dense", {}),
    "SAELens": ("saelens", {}),
    "SAELens, sparse": ("saelens", {"use_sparse_activations": True}),
    "sparsify": ("sparsify", {}),
    "overcomplete": ("overcomplete", {}),
}
STEPS = {3072: 8, 16_128: 4, 65_280: 2}
"""Steps a round by width, each a multiple of 768."""
BATCHES = {3072: 4096, 16_128: 4096, 65_280: 2048}
"""Vectors a step: at the greatest width and 4,096, SAELens needs more than 24 GB, while the other processes wait."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/sae_training"), help="folder of environments and data")
    parser.add_argument("--out", type=Path, default=Path("docs/results/sae_training.json"))
    parser.add_argument("--widths", default=",".join(map(str, STEPS)))
    parser.add_argument("--rounds", type=int, default=6, help="rounds; the first is warm-up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    pythons = {name: environment(options.work / name, pinned) for name, pinned in PEERS.items()}
    data = features_in(options.work)
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"widths": {}}
    command = f"python benchmarks/speed/sae_training.py --rounds {options.rounds} --device {options.device}"
    results |= provenance(command, bundled=False, device=options.device)
    results |= {"peers": PEERS, "k": K, "threads": options.threads}
    for m in map(int, options.widths.split(",")):
        if str(m) in results["widths"]:
            continue
        common = {"data": str(data), "m": m, "k": K, "batch": BATCHES[m], "lr": LR, "steps": STEPS[m], "seed": 0}
        common |= {"rounds": options.rounds, "device": options.device, "threads": options.threads}
        results["widths"][str(m)] = {
            "date": datetime.date.today().isoformat(),
            "batch": BATCHES[m],
            "steps": STEPS[m] * options.rounds,
            **measured(common, pythons),
        }
        write_atomic(options.out, json.dumps(results, indent=1) + "\n")
        show(m, results["widths"][str(m)])
    m = next(iter(STEPS))
    common = {"data": str(data), "m": m, "k": K, "batch": BATCHES[m], "steps": RATED // 4, "rounds": 4}
    common |= {"device": options.device, "threads": options.threads}
    if "rates" not in results:
        results["rates"] = {"date": datetime.date.today().isoformat(), "steps": RATED, "rows": by_rate(common, pythons)}
        write_atomic(options.out, json.dumps(results, indent=1) + "\n")
    if "seeds" not in results:
        results["seeds"] = by_seed(common, pythons, results["rates"]["rows"])
        write_atomic(options.out, json.dumps(results, indent=1) + "\n")


def environment(folder: Path, pinned: Sequence[str]) -> str:
    """Return the python of an environment with one peer and our torch, after making it if needed."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        wanted = [f"torch=={torch.__version__.partition('+')[0]}", *pinned]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
        (folder / "ready").touch()
    return str(python)


def features_in(work: Path) -> Path:
    """Return the file of the vectors to train on, after making it if needed."""
    data = work / "features.pt"
    if not data.exists():
        work.mkdir(parents=True, exist_ok=True)
        torch.save(features(), data)
    return data


def features() -> torch.Tensor:
    """Return `[VECTORS, WIDTH]`, from a random fifth of the positions of the corpus's first prompts."""
    pipe, width = reference.load(), 256
    sites = [Site("text_encoder", f"encoder.layers.{layer}", width) for layer in LAYERS]
    generator, found = torch.Generator().manual_seed(0), 0
    parts = []
    for batch in capture(pipe, sites, reference.sae_corpus()):
        rows = torch.cat([batch.states[site] for site in sites], -1).flatten(0, 1)
        parts.append(rows[torch.rand(len(rows), generator=generator) < 0.2])
        found += len(parts[-1])
        if found >= VECTORS:
            break
    vectors = torch.cat(parts)[:VECTORS]
    return vectors[torch.randperm(len(vectors), generator=generator)]


class Worker:
    """Process that trains one round at every call."""

    def __init__(self, python: str, job: Mapping[str, Any], log: Path) -> None:
        self.log = log
        command = [python, str(Path(__file__).with_name("sae_peer.py")), json.dumps(job)]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
            )
        self.answer()  # the first round

    def answer(self) -> Any:
        """Return its next line.

        Raises:
            ExciseError: The process stopped.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            errors = [line for line in self.log.read_text().splitlines() if "Error" in line]
            raise ExciseError(errors[-1].partition(". ")[0] if errors else f"it stopped; see {self.log}")
        return json.loads(line)

    def go_on(self) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()


def started(name: str, common: Mapping[str, Any], pythons: Mapping[str, str]) -> Worker:
    """Return the variant's process after its first round.

    Raises:
        ExciseError: The process stopped.
    """
    library, settings = VARIANTS[name]
    job = {**common, "library": library, "settings": settings}
    return Worker(pythons.get(library, sys.executable), job, Path(common["data"]).with_name(f"{name}.log"))


def measured(common: Mapping[str, Any], pythons: Mapping[str, str]) -> dict[str, Any]:
    """Return the operations a second of the encoder's product and a row for each variant.

    A row has the seconds a step, the ratios to dense PyTorch and to the roofline, and the held-out figures, or the
    reason why the variant cannot run.
    """
    workers: dict[str, Worker] = {}
    failed: dict[str, Any] = {}
    for name in VARIANTS:
        try:
            workers[name] = started(name, common, pythons)
            print(f"{name} is ready", flush=True)
        except ExciseError as error:
            failed[name] = {"failed": str(error)}
            print(f"{name}: {error}", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    peaks = []
    for _ in range(common["rounds"] - 1):
        peaks.append(products_per_second(common["batch"], common["m"], common["device"], common["threads"]))
        for name, worker in workers.items():
            seconds[name].append(worker.go_on() / common["steps"])
    least = [common["batch"] * (2 * WIDTH * common["m"] + 8 * WIDTH * K) / peak for peak in peaks]
    rows = {
        name: {
            "seconds": times,
            "tokens_a_second": common["batch"] / statistics.median(times),
            "as_fast_as_dense": compared(seconds["dense PyTorch"], times),
            "roofline": compared(least, times),
            **workers[name].go_on(),
        }
        for name, times in seconds.items()
    }
    return {"peak": statistics.median(peaks), "rows": rows | failed}


def by_rate(common: Mapping[str, Any], pythons: Mapping[str, str]) -> dict[str, Any]:
    """Return the held-out figures of each library at each rate."""
    rows: dict[str, dict[str, Any]] = {}
    for name in ("excise", "dense PyTorch", "SAELens", "sparsify", "overcomplete"):
        rows[name] = {f"{rate:g}": learnt(common, pythons, name, rate, 0) for rate in RATES}
        print(
            f"{name}: " + ", ".join(f"lr {rate}: fvu {row['fvu']:.4f}" for rate, row in rows[name].items()), flush=True
        )
    return rows


def by_seed(common: Mapping[str, Any], pythons: Mapping[str, str], rates: Mapping[str, Any]) -> dict[str, Any]:
    """Return the FVU of Excise and the best peer for each seed, at the rate with the lowest FVU of the first seed."""
    best = {name: min((row["fvu"], rate) for rate, row in rows.items()) for name, rows in rates.items()}
    peer = min((fvu, name) for name, (fvu, _) in best.items() if name not in ("excise", "dense PyTorch"))[1]
    rows = {}
    for name in ("excise", peer):
        rate = best[name][1]
        others = [learnt(common, pythons, name, float(rate), seed) for seed in SEEDS]
        rows[name] = {"lr": rate, "fvu": [rates[name][rate]["fvu"], *(row["fvu"] for row in others)]}
        print(f"{name}, seeds: {rows[name]}", flush=True)
    return rows


def learnt(common: Mapping[str, Any], pythons: Mapping[str, str], name: str, rate: float, seed: int) -> Any:
    """Return a library's held-out figures after all rounds, without timing."""
    worker = started(name, {**common, "lr": rate, "seed": seed}, pythons)
    for _ in range(common["rounds"] - 1):
        worker.go_on()
    return worker.go_on()


def products_per_second(batch: int, m: int, device: str, threads: int) -> float:
    """Return the operations a second of a product of the encoder's shape, averaged over three seconds."""
    torch.set_num_threads(threads)
    x, w, out = (torch.randn(shape, device=device) for shape in ((batch, WIDTH), (m, WIDTH), (batch, m)))
    torch.mm(x, w.T, out=out)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < 3:
        torch.mm(x, w.T, out=out)
        if device != "cpu":
            torch.cuda.synchronize()
        done += 1
    return 2 * batch * WIDTH * m * done / (time.perf_counter() - began)


def show(m: int, found: Mapping[str, Any]) -> None:
    print(f"m = {m}, {found['steps']} steps, {found['peak'] / 1e9:.0f} GFLOP/s in the encoder's product")
    for name, row in found["rows"].items():
        if "failed" in row:
            print(f"{name:24} {row['failed']}")
            continue
        ratio, share = row["as_fast_as_dense"], row["roofline"]["ratio"]
        print(
            f"{name:24} {row['tokens_a_second']:8.0f} tokens/s {ratio['ratio']:5.2f} x dense "
            f"({ratio['low']:.2f} to {ratio['high']:.2f})  roofline {share:4.0%}  fvu {row['fvu']:.4f}  "
            f"silent {row['silent']:.1%}"
        )


if __name__ == "__main__":
    main()
