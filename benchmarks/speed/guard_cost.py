"""Cost of the denoiser guard for the text states of every family, and of an eraser in whole pictures.

    python benchmarks/speed/guard_cost.py --out docs/results/guard_cost.json

For each family, the guard looks at random states of the shapes that its denoiser reads, in float32 on one thread. The
first call of a picture looks every vector up. Later ones compare with copies.

A step of most of these models is too long here, so its time is arithmetic: the operations of its forward pass
(`families.flops`, a lower bound) divided by this machine's measured speed of float32 matrix products.

Whole pictures are measured: on the bundled model, and on Stable Diffusion 1.4's text encoder with a smaller U-Net.
The bare and the erased pipeline run in turns. Times are seconds of the thread's processor, which other load affects
less. The interval is a bootstrap of the median ratio. What an eraser adds is less than the U-Net's time varies, and an
eraser of the text does nothing inside the U-Net's own `forward`. So what it adds is also measured without that: the
rest of both pictures, in turns.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from families import CASES, Case, flops, states_of
from shapes import clip_l
from torch import nn

from excise import reference
from excise.app.bench.provenance import provenance
from excise.app.models.resolve import bundled_settings
from excise.concepts import from_templates
from excise.erasers import Eraser, SAEEdit, made_for
from excise.erasers.guard.denoiser import DenoiserGuard, DenoiserHook
from excise.files import write_atomic
from excise.methods import method
from excise.methods.configs.sae import SNCEConfig
from excise.sae import SAEConfig, TopKSAE
from excise.sites import PRESETS, capture

PROMPT, STEPS = "a gun on grass", 20


class Denoiser(nn.Module):
    """A denoiser's arguments, without its work."""

    def forward(
        self,
        sample: Any = None,
        timestep: Any = None,
        encoder_hidden_states: Any = None,
        encoder_hidden_states_2: Any = None,
        pooled_projections: Any = None,
        text_embeds: Any = None,
        cap_feats: Any = None,
    ) -> None:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="pairs of pictures")
    parser.add_argument("--looks", type=int, default=20, help="calls of the guard for each family")
    parser.add_argument("--out", type=Path, default=Path("docs/results/guard_cost.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock_forwards()
    speed = matmul_speed()
    pipe = clip_l("cpu")
    with clip_eraser(pipe).attach(pipe):
        families = {name: looked(pipe, case, options.looks, speed) for name, case in CASES.items()}
    for name, row in families.items():
        print(f"{name:24} first {row['first']:8.3f} ms, later {row['later']:8.3f} ms, a step {row['step']:9.1f} s:")
        print(f"{'':24} {row['share']:.4%} of it, with the first in {STEPS} steps {row['picture']:.4%}", flush=True)
    pictures = {"bundled": whole(*bundled(), options.rounds), "clip_l": whole(*clip_shape(), options.rounds // 2)}
    for name, row in pictures.items():
        print(f"{name}: {row['ratio'] - 1:+.2%} ({row['low'] - 1:+.2%} to {row['high'] - 1:+.2%})")
        added = row["added"]
        print(f"{'':10}{added['share']:+.2%} ({added['low']:+.2%} to {added['high']:+.2%}), {added['ms']:.2f} ms")
    results = {
        **provenance(f"python benchmarks/speed/guard_cost.py --rounds {options.rounds}"),
        "gflops": speed / 1e9,
        "steps": STEPS,
        "families": families,
        "pictures": pictures,
    }
    write_atomic(options.out, json.dumps(results, indent=1) + "\n")


def clocked(call: Callable[[], Any]) -> float:
    """Return the seconds of processor time that this thread takes for a call."""
    began = time.thread_time()
    call()
    return time.thread_time() - began


def matmul_speed(n: int = 1536) -> float:
    """Return the most float32 operations a second of a product of two n x n matrices, in 8 tries."""
    a, b = torch.randn(2, n, n)
    return 2 * n**3 / min(clocked(lambda: a @ b) for _ in range(8))


@torch.no_grad()
def looked(pipe: Any, case: Case, looks: int, speed: float) -> dict[str, Any]:
    """Return milliseconds of the first and of later looks at a family's states, and their shares of a step."""
    guard = DenoiserGuard.of(pipe.unet)
    assert guard is not None
    given, made = states_of(case, "cpu")
    model, first = Denoiser(), []
    hook = DenoiserHook(guard)
    for _ in range(3):
        guard.forget()
        guard.add(made)
        first.append(clocked(lambda: hook.pre_forward(model, **given)))
    later = statistics.median(clocked(lambda: hook.pre_forward(model, **given)) for _ in range(looks))
    operations = flops(case)
    step = operations / speed
    whole = (min(first) + (STEPS - 1) * later) / (STEPS * step)
    return {
        "shapes": [list(shape) for shapes in case.states.values() for shape in shapes],
        "first": 1000 * min(first),
        "later": 1000 * later,
        "tflop": operations / 1e12,
        "step": step,
        "share": later / step,
        "picture": whole,
    }


INSIDE: list[float] = []
"""Seconds of each `forward` of a U-Net."""


def clock_forwards(instead: Callable[..., Any] | None = None) -> None:
    """Note the time of each `forward` of the U-Nets that are hooked from now on, or of what runs `instead`."""
    forward = UNet2DConditionModel.forward

    @wraps(forward)
    def clocked_forward(*args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        made = (instead or forward)(*args, **kwargs)
        INSIDE.append(time.thread_time() - began)
        return made

    UNet2DConditionModel.forward = clocked_forward


def draw(pipe: Any) -> Any:
    """Generate the latents of a picture."""
    return pipe(
        PROMPT, num_inference_steps=STEPS, output_type="latent", generator=torch.Generator().manual_seed(0)
    ).images


def whole(bare: Any, erased: Any, rounds: int) -> dict[str, Any]:
    """Return the ratio of the times of pictures with and without an eraser, in turns, and what the eraser adds outside
    of the U-Net, as a share of a bare picture, each with a 95 % interval."""
    draw(bare), draw(erased)
    ratios, seconds, added = list[float](), list[float](), list[float]()
    for n in range(rounds):
        times, outside = {}, {}
        for name, pipe in (("bare", bare), ("erased", erased))[:: -1 if n % 2 else 1]:
            INSIDE.clear()
            times[name] = clocked(partial(draw, pipe))
            outside[name] = times[name] - sum(INSIDE)
        ratios.append(times["erased"] / times["bare"])
        seconds.append(times["bare"])
        added.append(outside["erased"] - outside["bare"])
    (ratio, *ends), (more, *bounds) = median_of(ratios), median_of(added)
    picture = statistics.median(seconds)
    shares = dict(zip(("share", "low", "high"), (each / picture for each in (more, *bounds)), strict=True))
    return {
        **dict(zip(("ratio", "low", "high"), (ratio, *ends), strict=True)),
        "seconds": picture,
        "rounds": rounds,
        "added": {"ms": 1000 * more, **shares},
    }


def median_of(values: list[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % interval by bootstrap."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(2000))
    return statistics.median(values), medians[50], medians[-51]


def bundled() -> tuple[Any, Any]:
    """Return the bundled model twice, bare and under an eraser."""
    bare, erased = reference.load(), reference.load()
    eraser = method("snce").fit(erased, from_templates("gun", ("gun",)), SNCEConfig(**bundled_settings()["snce"]))
    eraser.attach(erased)
    for pipe in (bare, erased):
        pipe.set_progress_bar_config(disable=True)
    return bare, erased


def clip_shape() -> tuple[Any, Any]:
    """Return the same for CLIP-L's shape with a U-Net of 0.3 of Stable Diffusion 1.4's width, on 32 x 32 latents."""
    pipes = [clip_l("cpu"), clip_l("cpu")]
    for pipe in pipes:
        torch.manual_seed(0)
        pipe.unet = UNet2DConditionModel(
            sample_size=32, cross_attention_dim=768, block_out_channels=(96, 192, 384, 384)
        ).eval()
    clip_eraser(pipes[1]).attach(pipes[1])

    return pipes[0], pipes[1]


@torch.no_grad()
def clip_eraser(pipe: Any) -> Eraser:
    """Return an eraser of the neuron that fires most at the prompt's end, in an SAE of random weights."""
    site = PRESETS["sd14"][0]
    torch.manual_seed(0)
    sae = TopKSAE(SAEConfig(d=site.width, m=2 * site.width, k=32))
    (read,) = capture(pipe, [site], [PROMPT])
    codes = sae.encode(read.states[site])
    neuron, code = int(codes.indices[0, -1, 0]), float(codes.values[0, -1, 0])
    edit = SAEEdit.from_sae(sae, site, [neuron], gate="threshold", threshold=torch.tensor([code / 2]))
    return Eraser((edit,), "gun", "gun", ("gun",), made_for(pipe), canary=(PROMPT,))


if __name__ == "__main__":
    main()
