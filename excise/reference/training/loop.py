"""The training loop of the reference model's parts: it checkpoints, logs, averages weights and resumes."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from excise.errors import ExciseError
from excise.files import open_regular, temporary_beside

EVERY = 200
"""Steps between log lines."""
SAVE = 300
"""Steps between checkpoints."""
AVERAGED = 4
"""Steps between updates of the averaged weights."""


def multiplies_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 in hardware. Others take many times longer than in float32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def faster_products() -> torch.autocast:
    """Return a context that multiplies in bfloat16 if the processor does so in hardware, and in float32 otherwise."""
    return torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16())


def cosine(step: int, steps: int, peak: float, warmup: int = 200, floor: float = 0.02) -> float:
    """Return the learning rate: linear warm-up, then half a cosine down to `floor * peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1))))


def trapezoid(steps: int, peak: float, decay_from: int | None = None, warmup: int = 400) -> Callable[[int], float]:
    """Return a learning rate schedule: linear warm-up, a plateau, and a linear decay to a fiftieth.

    A later run can extend the plateau.
    """
    start = int(0.75 * steps) if decay_from is None else decay_from

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        if step < start:
            return peak
        return peak * max(0.02, (steps - step) / max(1, steps - start))

    return rate


class Average:
    """Exponential moving average of a module's weights. The decay per step grows to `decay`.

    `update` is called every AVERAGED steps, so it applies the decay to that power.
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items() if v.is_floating_point()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step)) ** AVERAGED
        state = module.state_dict()
        mine = list(self.weights.values())
        torch._foreach_lerp_(mine, [state[k] for k in self.weights], 1 - decay)

    def copy_to(self, module: nn.Module) -> None:
        module.load_state_dict(self.weights, strict=False)


def run(
    module: nn.Module,
    loss: Callable[[int], tuple[Tensor, dict[str, float]]],
    *,
    steps: int,
    peak: float,
    out: Path,
    weight_decay: float = 0.01,
    decay: float = 0.999,
    betas: tuple[float, float] = (0.9, 0.99),
    schedule: Callable[[int], float] | None = None,
) -> Average:
    """Minimise `loss(step)` over `module` with AdamW. Return the averaged weights.

    The state is stored in `out/checkpoint.pt`, and a call with the same `out` resumes from there. `loss` must seed its
    randomness with the step number, so that a resumed run equals an uninterrupted one.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "checkpoint.pt"
    optimiser = torch.optim.AdamW(module.parameters(), lr=peak, betas=betas, weight_decay=weight_decay, fused=True)
    average, first = Average(module, decay), 0
    if path.exists():
        with open_regular(path) as file:
            saved = torch.load(file, weights_only=True)
        module.load_state_dict(saved["module"])
        optimiser.load_state_dict(saved["optimiser"])
        average.weights, first = saved["average"], saved["step"]
    since, seen = time.monotonic(), 0
    step = first
    try:
        for step in range(first, steps):
            for group in optimiser.param_groups:
                group["lr"] = schedule(step) if schedule else cosine(step, steps, peak)
            optimiser.zero_grad(set_to_none=True)
            value, figures = loss(step)
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            if (step + 1) % AVERAGED == 0:
                average.update(module, step)
            seen += 1
            if (step + 1) % EVERY == 0:
                rate = seen / (time.monotonic() - since)
                line = {"step": step + 1, "loss": round(value.item(), 5), **figures, "steps_per_s": round(rate, 2)}
                with (out / "log.jsonl").open("a") as log:
                    log.write(json.dumps(line) + "\n")
                print(json.dumps(line), file=sys.stderr, flush=True)
                since, seen = time.monotonic(), 0
            if (step + 1) % SAVE == 0:
                _save(path, module, optimiser, average, step + 1)
    except KeyboardInterrupt:
        print(f"stopped at step {step}; the same command resumes from the last checkpoint", file=sys.stderr)
        raise
    _save(path, module, optimiser, average, steps)
    return average


def _save(path: Path, module: nn.Module, optimiser: torch.optim.Optimizer, average: Average, step: int) -> None:
    state = {
        "module": module.state_dict(),
        "optimiser": optimiser.state_dict(),
        "average": average.weights,
        "step": step,
    }
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise ExciseError(f"cannot write {path} ({error}); free some space, then run it again to resume") from error
