"""Whether `torch.compile` makes a training step of an SAE faster: eager and compiled in turns, in one process.

    python benchmarks/speed/compiling.py --work build/sae_training --out docs/results/compiling.json

The default backend compiles codes, decode and loss as one graph, and their gradients. The optimiser is already fused.
Both variants take the same steps on the same vectors from the same weights. The script first compares their gradients.
The seconds to compile are those of the first gradients, without a cache.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sae_training import BATCHES, LR, K, features_in
from timing import compared, interleaved

from excise.app.bench.provenance import provenance
from excise.files import write_atomic
from excise.sae import SAEConfig, TopKSAE
from excise.sae.losses import step

STEPS = 4
"""Number of steps in a round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/sae_training"), help="folder of the data")
    parser.add_argument("--out", type=Path, default=Path("docs/results/compiling.json"))
    parser.add_argument("--widths", default=",".join(map(str, BATCHES)))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.compiler.config.force_disable_caches = True
    torch._dynamo.config.trace_autograd_ops = True  # the gradient of the chosen pre-activations is autograd's own
    vectors = torch.load(features_in(options.work), mmap=True, weights_only=True)
    results: dict[str, Any] = {
        **provenance(
            f"python benchmarks/speed/compiling.py --rounds {options.rounds} --device {options.device}",
            bundled=False,
            device=options.device,
        ),
        "widths": {},
    }
    for m in map(int, options.widths.split(",")):
        batches = vectors[: STEPS * BATCHES[m]].to(options.device).split(BATCHES[m])
        results["widths"][str(m)] = row = measured(batches, m, options.rounds)
        ratio = row["as_fast"]
        print(
            f"m = {m}: compiled {ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) times eager, after "
            f"{row['to_compile']:.0f} s; gradients differ by {row['differ']:.1e} of their length",
            flush=True,
        )
    write_atomic(options.out, json.dumps(results, indent=1) + "\n")


def measured(batches: tuple[torch.Tensor, ...], m: int, rounds: int) -> dict[str, Any]:
    """Return the timings of both variants at one width."""
    saes = {name: TopKSAE(SAEConfig(batches[0].shape[1], m, K)).to(batches[0].device) for name in ("eager", "compiled")}
    objectives = {"eager": mse, "compiled": torch.compile(mse, fullgraph=True)}
    plain = gradients(saes["eager"], mse, batches[0])
    began = time.perf_counter()
    made = gradients(saes["compiled"], objectives["compiled"], batches[0])
    first = time.perf_counter() - began
    seconds = interleaved({name: steps(saes[name], objectives[name], batches) for name in saes}, rounds)
    return {
        "as_fast": compared(seconds["eager"], seconds["compiled"]),
        "to_compile": first - min(seconds["compiled"]) / STEPS,
        "differ": float((plain - made).norm() / plain.norm()),
    }


def gradients(sae: TopKSAE, objective: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return all gradients in one vector."""
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(objective(sae, x), [*sae.parameters()])])


def mse(sae: TopKSAE, x: torch.Tensor) -> torch.Tensor:
    return (sae(x).reconstruction - x).square().mean()


def steps(
    sae: TopKSAE, objective: Callable[..., torch.Tensor], batches: tuple[torch.Tensor, ...]
) -> Callable[[], None]:
    """Return a function that takes a round: one step on each batch."""
    optimiser = torch.optim.Adam(sae.parameters(), lr=LR, fused=True)

    def taken() -> None:
        for x in batches:
            objective(sae, x).backward()
            step(sae, optimiser)
        if batches[0].is_cuda:
            torch.cuda.synchronize()

    return taken


if __name__ == "__main__":
    main()
