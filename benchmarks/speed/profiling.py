"""Share of the time for each operator: training an SAE, reading prompts for it, encoding a prompt, erasing.

    python benchmarks/speed/profiling.py --work build/sae_training --out docs/results/profiling.json

The script runs PyTorch's profiler on the same work as `sae_training.py`, `capturing.py`, `encoding.py` and
`erasing.py`. Shares are of the time spent in the operators themselves. Shares below 1 % are omitted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from capturing import sentences
from encoding import encoded, eraser_of
from erasing import on_random_weights
from sae_training import BATCHES, features_in
from shapes import clip_l
from torch.profiler import ProfilerActivity, profile

from excise.app.bench.provenance import provenance
from excise.concepts import from_templates
from excise.files import write_atomic
from excise.sae import SAEConfig, TopKSAE, TrainConfig, train
from excise.sites import PRESETS, capture_by_length

SITE = PRESETS["sd14"][0]
LEAST = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/sae_training"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/profiling.json"))
    options = parser.parse_args()
    vectors = torch.load(features_in(options.work), mmap=True, weights_only=True)
    pipe = clip_l("cpu")
    sae = TopKSAE(SAEConfig(d=SITE.width, m=4 * SITE.width, k=32))
    prompts = sentences(128)
    results: dict[str, Any] = {
        **provenance("python benchmarks/speed/profiling.py", bundled=False),
        "shares": {f"a training step, m = {m}": training(vectors, m, {}) for m in BATCHES},
    }
    shares = results["shares"]
    shares["a training step, m = 3072, shortlist 8"] = training(vectors, 3072, {"shortlist": 8})
    shares["reading prompts by length"] = of(lambda: [*capture_by_length(pipe, [SITE], prompts)])
    shares["erasing one more concept"] = of(on_random_weights(pipe, from_templates("gun", ("gun",))))
    with eraser_of(pipe, sae, "topk").attach(pipe, sae=sae):
        shares["encoding a prompt, exact TopK"] = of(lambda: encoded(pipe))
    write_atomic(options.out, json.dumps(results, indent=1) + "\n")
    for name, rows in shares.items():
        print(f"{name}: {', '.join(f'{operator} {share:.0%}' for operator, share in rows.items())}")


def of(work: Callable[[], Any]) -> dict[str, float]:
    """Return the operators' shares, largest first, after one run without the profiler."""
    with torch.no_grad():
        work()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            work()
    return shares_of(seen)


def training(vectors: torch.Tensor, m: int, settings: dict[str, Any]) -> dict[str, float]:
    """Return the shares of the training steps after the first."""
    seen = profile(activities=[ProfilerActivity.CPU])
    steps = 4

    def progress(line: Any) -> None:
        if line.step == 1:
            seen.__enter__()
        elif line.step == steps + 1:
            seen.__exit__(None, None, None)

    shape: dict[str, Any] = {
        "expansion": m // vectors.shape[1],
        "batch": BATCHES[m],
        "tokens": BATCHES[m] * (steps + 1),
    }
    config = TrainConfig(**shape, alpha=0, log_every=1, **settings)
    with tempfile.TemporaryDirectory() as folder:
        train(vectors, config, Path(folder) / "sae", progress=progress)
    return shares_of(seen)


def shares_of(seen: Any) -> dict[str, float]:
    """Return the shares by PyTorch's names of the operators, largest first."""
    found = {event.key: float(event.self_cpu_time_total) for event in seen.key_averages()}
    whole = sum(found.values())
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return {name.removeprefix("aten::"): time / whole for name, time in ordered if time >= LEAST * whole}


if __name__ == "__main__":
    main()
