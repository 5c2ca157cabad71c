"""Where the denoiser guard's time goes in a picture of the bundled model, and three ways to save some of it.

    python benchmarks/speed/guard_where.py --rounds 40

Pictures with and without an eraser are generated in turns, with some of the guard's work left out or done another way.
Their U-Net only sweeps the caches, as a real one does: the time outside of it is what counts. Times are milliseconds of
the thread's processor.
"""

from __future__ import annotations

import argparse
import json
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from guard_cost import INSIDE, PROMPT, bundled, clock_forwards, clocked, draw, median_of
from torch import Tensor, nn

from excise.app.bench.provenance import provenance
from excise.erasers.guard import accepted
from excise.erasers.guard.denoiser import DenoiserGuard
from excise.erasers.hooks.setting import image
from excise.files import write_atomic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="pictures of each kind")
    parser.add_argument("--out", type=Path, default=Path("docs/results/guard_where.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock_forwards(sweep)
    added = where(*bundled(), options.rounds)
    made = provenance(f"python benchmarks/speed/guard_where.py --rounds {options.rounds}", ["snce"])
    write_atomic(options.out, json.dumps({**made, "rounds": options.rounds, "added": added}, indent=1) + "\n")


SWEPT = torch.zeros(1 << 23)
"""32 MB."""


def sweep(unet: nn.Module, sample: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
    """Read and write more than the caches hold, as a U-Net's weights do, and predict the latents."""
    SWEPT.add_(1)
    return (sample,)


def where(bare: Any, erased: Any, rounds: int) -> dict[str, dict[str, float]]:
    """Return the milliseconds that an eraser adds to a picture outside of the U-Net, in each way of `ways`, and to
    encoding its prompt: medians with 95 % intervals, all in turns."""
    tried, encoding, added = ways(erased), list[float](), dict[str, list[float]]()

    def outside(pipe: Any) -> float:
        INSIDE.clear()
        whole = clocked(partial(draw, pipe))
        return 1000 * (whole - sum(INSIDE))

    for n in range(rounds + 1):
        plain = outside(bare)
        for name, patches in [*tried.items()][:: -1 if n % 2 else 1]:
            with ExitStack() as stack:
                for each in patches:
                    stack.enter_context(each())
                added.setdefault(name, []).append(outside(erased) - plain)
        before, after = (clocked(partial(pipe.encode_prompt, PROMPT, "cpu", 1, True)) for pipe in (bare, erased))
        encoding.append(1000 * (after - before))
    # The first round warms up.
    rows = {"encoding the prompt": encoding[1:], **{name: values[1:] for name, values in added.items()}}
    found = {name: dict(zip(("ms", "low", "high"), median_of(values), strict=True)) for name, values in rows.items()}
    for name, row in found.items():
        print(f"{name:48} {row['ms']:6.2f} ms ({row['low']:.2f} to {row['high']:.2f})", flush=True)
    return found


def ways(erased: Any) -> dict[str, Sequence[Callable[[], Any]]]:
    """Return ways to check the U-Net's states, each as patches of the guard."""
    guard = DenoiserGuard.of(erased.unet)
    assert guard is not None
    hook, check, keys = guard._installed[erased.unet], DenoiserGuard.check, weakref.WeakKeyDictionary[Any, Any]()

    def once_an_image(self: DenoiserGuard, states: Sequence[Tensor]) -> None:
        if (kept := keys.get(now := image())) is None:
            live = self.live
            kept = keys[now] = (record := self._record_of(self.setting), *(each.number for each in live)), record
        given, (under, record) = [state.detach() for state in states], kept
        found = self._accepted.find(now, under, given)
        if found is None or found.generation != record.known.generation:
            check(self, states)

    def as_integers(looks: Sequence[accepted.Look], states: Sequence[Tensor]) -> accepted.Look | None:
        def same(a: Tensor, b: Tensor) -> bool:
            return torch.equal(a.view(torch.int64), b.view(torch.int64))

        return next((look for look in looks if all(map(same, states, look.states))), None)

    def fewer_hooks() -> ExitStack:
        stack = ExitStack()
        for hooks in (erased.unet._forward_pre_hooks, erased.unet._forward_hooks):
            left = {key: own for key, own in hooks.items() if getattr(own, "__self__", None) is not hook}
            stack.enter_context(patch.dict(hooks, left, clear=True))
        return stack

    key, integers = (
        partial(patch.object, DenoiserGuard, "check", once_an_image),
        partial(patch.object, accepted, "_equal_one", as_integers),
    )
    return {
        "as it is": (),
        "the setting's key kept for an image": (key,),
        "states compared as 64-bit integers": (integers,),
        "two module hooks fewer": (fewer_hooks,),
        "all three": (key, integers, fewer_hooks),
        "no check of the states": (partial(patch.object, DenoiserGuard, "check", lambda *_: None),),
    }


if __name__ == "__main__":
    main()
