"""Cost of the denoiser guard for the text states of every family, and of an eraser in whole pictures.

    python benchmarks/speed/guard_cost.py --out docs/results/guard_cost.json

For each family, the guard looks at random states of the shapes that its denoiser reads, in float32 on one thread. The
first call of a picture looks every vector up. Later ones compare with copies.

A step of most of these models is too long here, so its time is arithmetic: the operations of its forward pass
(`families.flops`, a lower bound) divided by this machine's measured speed of float32 matrix products.

Whole pictures are measured: on the bundled model, and on Stable Diffusion 1.4's text encoder with a smaller U-Net.
The bare and the erased pipeline run in turns. Times are seconds of the thread's processor, which other load affects
less. The interval is a bootstrap of the median ratio.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from families import CASES, Case, flops, states_of
from shapes import clip_l
from torch import nn

from excise import reference
from excise.app.models.resolve import bundled_settings
from excise.bench.machine import machine
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
    speed = matmul_speed()
    pipe = clip_l("cpu")
    with clip_eraser(pipe).attach(pipe):
        families = {name: looked(pipe, case, options.looks, speed) for name, case in CASES.items()}
    for name, row in families.items():
        print(f"{name:24} first {row['first']:8.3f} ms, later {row['later']:8.3f} ms, a step {row['step']:9.1f} s:")
        print(f"{'':24} {row['share']:.4%} of it, with the first in {STEPS} steps {row['picture']:.4%}", flush=True)
    pictures = {
        "bundled": whole(*bundled(), options.rounds),
        "clip_l": whole(*clip_shape(), options.rounds // 2),
    }
    for name, row in pictures.items():
        print(f"{name}: {row['ratio'] - 1:+.2%} ({row['low'] - 1:+.2%} to {row['high'] - 1:+.2%})")
    results = {
        "command": f"python benchmarks/speed/guard_cost.py --rounds {options.rounds} --looks {options.looks}",
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
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


Draw = Callable[[], Any]


def whole(bare: Draw, erased: Draw, rounds: int) -> dict[str, float]:
    """Return the ratio of the times of pictures with and without an eraser, in turns, with a 95 % interval."""
    bare(), erased()
    ratios, seconds = list[float](), list[float]()
    for n in range(rounds):
        times = {name: clocked(call) for name, call in _in_turns({"bare": bare, "erased": erased}, n)}
        ratios.append(times["erased"] / times["bare"])
        seconds.append(times["bare"])
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=rounds)) for _ in range(2000))
    return {
        "ratio": statistics.median(ratios),
        "low": medians[50],
        "high": medians[-51],
        "seconds": statistics.median(seconds),
        "rounds": rounds,
    }


def _in_turns(calls: Mapping[str, Draw], n: int) -> list[tuple[str, Draw]]:
    """Return the calls in an order that changes from round to round."""
    return list(calls.items())[:: -1 if n % 2 else 1]


def bundled() -> tuple[Draw, Draw]:
    """Return calls that generate a picture with the bundled model, bare and under an eraser."""
    bare, erased = reference.load(), reference.load()
    eraser = method("snce").fit(erased, from_templates("gun", ("gun",)), SNCEConfig(**bundled_settings()["snce"]))
    eraser.attach(erased)
    return tuple(  # type: ignore[return-value]
        lambda pipe=pipe: reference.generate(pipe, [PROMPT], [0], steps=STEPS, batch_size=1) for pipe in (bare, erased)
    )


def clip_shape() -> tuple[Draw, Draw]:
    """Return the same for CLIP-L's shape with a U-Net of 0.3 of Stable Diffusion 1.4's width, on 32 x 32 latents."""
    from diffusers import UNet2DConditionModel

    pipes = [clip_l("cpu"), clip_l("cpu")]
    for pipe in pipes:
        torch.manual_seed(0)
        pipe.unet = UNet2DConditionModel(
            sample_size=32, cross_attention_dim=768, block_out_channels=(96, 192, 384, 384)
        ).eval()
    clip_eraser(pipes[1]).attach(pipes[1])

    def draw(pipe: Any) -> Any:
        size = 32 * pipe.vae_scale_factor
        return pipe(PROMPT, num_inference_steps=STEPS, height=size, width=size, output_type="latent")

    return tuple(lambda pipe=pipe: draw(pipe) for pipe in pipes)  # type: ignore[return-value]


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
