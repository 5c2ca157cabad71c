"""Time that an eraser adds to encoding a prompt and to a picture: SNCE on Stable Diffusion 1.4's shape, random weights.

    python benchmarks/speed/encoding.py --out docs/results/encoding.json

The bare pipeline and three erasers of one neuron encode the same prompt and the unconditional prompt, in turns.
`concept` subtracts precomputed codes, `threshold` reads only the neuron's row, and `topk` reads all rows of the SAE.
The added share is the ratio to the bare pipeline minus one: median and quartiles over the rounds.

A picture of 20 steps is encoded once. Before every step, an attached eraser checks the states that the U-Net receives.
The script times this check in the pipeline with `threshold`, and the bare U-Net's step with both branches of guidance.
`picture` is the share that one encoding and 20 checks add. On the bundled model, whose U-Net is a fortieth of Stable
Diffusion's, it generates whole pictures in turns, bare and with an eraser.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from shapes import clip_l, sd14
from timing import compared, interleaved

from excise import reference
from excise.app.bench.provenance import provenance
from excise.app.models.resolve import bundled_settings
from excise.concepts import from_templates
from excise.erasers import Eraser, SAEEdit, made_for
from excise.erasers.guard.denoiser import DenoiserGuard
from excise.files import write_atomic
from excise.methods import method
from excise.methods.configs.sae import SNCEConfig
from excise.sae import SAEConfig, TopKSAE
from excise.sites import PRESETS, capture

PROMPT = "a photo of a gun on a wooden table, highly detailed, 35mm"
SITE = PRESETS["sd14"][0]
STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("docs/results/encoding.json"))
    options = parser.parse_args()
    sae = TopKSAE(SAEConfig(d=SITE.width, m=4 * SITE.width, k=32)).to(options.device)
    calls: dict[str, Callable[[], Any]] = {}
    for name in ("bare", "concept", "threshold", "topk"):
        pipe = clip_l(options.device)
        if name != "bare":
            eraser_of(pipe, sae, name).attach(pipe, sae=sae if name == "topk" else None)
        calls[name] = partial(encoded, pipe)
    with torch.no_grad():
        seconds = interleaved(calls, options.rounds)
    rows = {name: compared(times, seconds["bare"]) for name, times in seconds.items()}
    picture = in_a_picture(sae, rows, options.device)
    whole = whole_pictures(options.rounds // 2, options.device)
    results = {
        **provenance(
            f"python benchmarks/speed/encoding.py --rounds {options.rounds} --device {options.device}",
            device=options.device,
        ),
        "site": SITE.key,
        "rows": rows,
        "picture": picture,
        "bundled": whole,
    }
    write_atomic(options.out, json.dumps(results, indent=1) + "\n")
    for name, row in rows.items():
        print(
            f"{name:10} {1000 * row['seconds']:7.2f} ms  added {row['ratio'] - 1:+.2%}"
            f" ({row['low'] - 1:+.2%} to {row['high'] - 1:+.2%})"
        )
    print(
        f"a check {1000 * picture['look']:.2f} ms, a step {picture['step']:.2f} s: "
        f"a picture of {STEPS} steps {picture['added']:+.3%}"
    )
    spread = f"{whole['low'] - 1:+.2%} to {whole['high'] - 1:+.2%}"
    print(f"bundled model, whole pictures: {whole['ratio'] - 1:+.2%} ({spread})")


@torch.no_grad()
def in_a_picture(sae: TopKSAE, rows: dict[str, dict[str, float]], device: str) -> dict[str, float]:
    """Return the seconds of a U-Net step and of the check before it, and the share that an eraser adds to a picture."""
    pipe = sd14(device)
    latents, states = torch.randn(2, 4, 64, 64, device=device), encoded(pipe)
    both = torch.cat([states[1], states[0]])
    times = interleaved({"step": lambda: waited(pipe.unet(latents, 500, both))}, 5)["step"]
    attached = eraser_of(pipe, sae, "threshold").attach(pipe)
    states = encoded(pipe)
    both = torch.cat([states[1], states[0]])
    guard = DenoiserGuard.of(pipe.unet)
    assert guard is not None
    looks = interleaved({"look": lambda: waited(guard.through(both))}, 50)["look"]
    attached.detach()
    step, look = statistics.median(times), statistics.median(looks)
    encoding = rows["threshold"]["seconds"] * (1 - 1 / rows["threshold"]["ratio"])
    bare = rows["bare"]["seconds"] + STEPS * step
    return {"step": step, "look": look, "added": (encoding + STEPS * look) / bare}


def whole_pictures(rounds: int, device: str) -> dict[str, float]:
    """Return the time of a picture of the bundled model with an eraser, compared with the bare model's."""
    bare, erased = reference.load().to(device), reference.load().to(device)
    eraser = method("snce").fit(erased, from_templates("gun", ("gun",)), SNCEConfig(**bundled_settings()["snce"]))
    eraser.attach(erased)
    calls = {
        name: lambda pipe=pipe: reference.generate(pipe, ["a gun on grass"], [0], steps=STEPS, batch_size=1)
        for name, pipe in (("bare", bare), ("erased", erased))
    }
    seconds = interleaved(calls, rounds)
    return compared(seconds["erased"], seconds["bare"])


def waited(made: Any) -> Any:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return made


@torch.no_grad()
def eraser_of(pipe: Any, sae: TopKSAE, how: str) -> Eraser:
    """Return an eraser that turns down, in one of three ways, the neuron that fires most at the prompt's end."""
    (read,) = capture(pipe, [SITE], [PROMPT])
    codes = sae.encode(read.states[SITE])
    neuron, code = int(codes.indices[0, -1, 0]), float(codes.values[0, -1, 0])
    if how == "concept":
        level = torch.full((read.ids.shape[1], 1), code)
        edit = SAEEdit.from_sae(sae, SITE, [neuron], gate="topk", source="concept", concept_codes=level)
    elif how == "topk":
        edit = SAEEdit.from_sae(sae, SITE, [neuron], gate="topk")
    else:
        edit = SAEEdit.from_sae(sae, SITE, [neuron], gate="threshold", threshold=torch.tensor([code / 2]))
    return Eraser((edit,), f"gun-{how}", "gun", ("gun",), made_for(pipe), canary=(PROMPT,))


def encoded(pipe: Any) -> Any:
    """Encode the prompt and the unconditional prompt."""
    return waited(pipe.encode_prompt(PROMPT, pipe.device, 1, True))


if __name__ == "__main__":
    main()
