"""What an eraser adds to encoding a prompt, and to a picture: SNCE on a CLIP-L with random weights, Stable Diffusion
1.4's own shape.

    python benchmarks/encoding.py --out docs/results/encoding.json

The bare pipeline and three erasers of one neuron encode the same prompt with its unconditional twin in turns:
`concept` subtracts what was computed beforehand, `threshold` reads the neuron's row alone, `topk` reads all rows of the
SAE. Added is the ratio to the bare pipeline less one: median and quartiles over the rounds.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shapes import clip_l
from timing import beside, interleaved

from excise.app.demo import machine
from excise.erasers import Eraser, SAEEdit, made_for
from excise.files import write_atomic
from excise.sae import SAEConfig, TopKSAE
from excise.sites import PRESETS, capture

PROMPT = "a photo of a gun on a wooden table, highly detailed, 35mm"
SITE = PRESETS["sd14"][0]


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
        calls[name] = lambda pipe=pipe: encoded(pipe)
    with torch.no_grad():
        seconds = interleaved(calls, options.rounds)
    rows = {name: beside(own, seconds["bare"]) for name, own in seconds.items()}
    told = {
        "command": f"python benchmarks/encoding.py --rounds {options.rounds} --device {options.device}",
        "machine": machine(options.device),
        "date": datetime.date.today().isoformat(),
        "site": SITE.key,
        "rows": rows,
    }
    write_atomic(options.out, json.dumps(told, indent=1) + "\n")
    for name, row in rows.items():
        print(
            f"{name:10} {1000 * row['seconds']:7.2f} ms  added {row['ratio'] - 1:+.2%}"
            f" ({row['low'] - 1:+.2%} to {row['high'] - 1:+.2%})"
        )


@torch.no_grad()
def eraser_of(pipe: Any, sae: TopKSAE, how: str) -> Eraser:
    """One of the neurons that fire most at the prompt's end, turned down in one of three ways."""
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
    """The prompt and its unconditional twin."""
    made = pipe.encode_prompt(PROMPT, pipe.device, 1, True)
    if pipe.device.type == "cuda":
        torch.cuda.synchronize()
    return made


if __name__ == "__main__":
    main()
