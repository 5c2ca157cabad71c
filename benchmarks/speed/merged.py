"""Cost of erasing many concepts at once: time to encode a prompt and to attach, and bytes, by the number of concepts.

    python benchmarks/speed/merged.py --out docs/results/merged.json

The text encoder has the shape of SD 1.x's (CLIP ViT-L/14) and random weights. An eraser's neuron is random too, with a
threshold above what the timed prompt reaches, so that no gate opens: the case of almost every prompt. Prompts are
encoded with guidance, on one thread. All variants take turns, and each round's ratio is to the encoder without erasers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from shapes import clip_l
from timing import compared, interleaved

from excise.app.bench.provenance import provenance
from excise.erasers import Eraser, SAEEdit, made_for, merge
from excise.files import write_atomic
from excise.reference.world import OBJECTS
from excise.sae import SAEConfig, TopKSAE
from excise.sites import Site, capture

PROMPT = "a dog on a hill, in the style of a woodcut"
MERGED, SEPARATE = (1, 10, 40, 100, 1_000, 10_000), (10, 40)
"""Numbers of concepts."""
PROVED = 100
"""Most concepts to prove at attach time in this measurement; it takes two encodings a concept."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("docs/results/merged.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = provenance(f"python benchmarks/speed/merged.py --rounds {options.rounds}", bundled=False)
    write_atomic(options.out, json.dumps(results | measured(options.rounds), indent=1) + "\n")
    print(options.out.read_text())


def measured(rounds: int) -> dict[str, Any]:
    """Return each variant's time to encode, and for merged erasers the seconds to attach and the bytes."""
    plain = clip_l("cpu")
    erasers = fitted(plain, max(MERGED))
    variants: dict[str, Callable[[], Any]] = {"0": partial(encode, plain)}
    rows: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        for count in MERGED:
            own, eraser = deepcopy(plain), merge(erasers[:count]) if count > 1 else erasers[0]
            rows[str(count)] = {"bytes": sum(map(len, eraser.pack().values())) / count}
            if count <= PROVED:
                began = time.perf_counter()
                stack.enter_context(eraser.attach(own))
                rows[str(count)]["attach"] = time.perf_counter() - began
            else:
                stack.enter_context(shortly_proved(eraser).attach(own))
            variants[str(count)] = partial(encode, own)
            print(count, rows[str(count)], flush=True)
        for count in SEPARATE:
            own, began = deepcopy(plain), time.perf_counter()
            for eraser in erasers[:count]:
                stack.enter_context(eraser.attach(own))
            rows[f"{count} separate"] = {"attach": time.perf_counter() - began}
            variants[f"{count} separate"] = partial(encode, own)
        seconds = interleaved(variants, rounds)
    for name, row in rows.items():
        row["encode"] = compared(seconds[name], seconds["0"])
    return {"rows": rows, "rounds": rounds, "proved": PROVED}


@torch.no_grad()
def encode(pipe: Any) -> Any:
    """Encode the prompt, and an empty one for guidance."""
    return pipe.encode_prompt(PROMPT, "cpu", 1, True)


def fitted(pipe: Any, count: int) -> list[Eraser]:
    """Return erasers of one random neuron each, which the timed prompt does not activate.

    Each has a canary prompt of its own, which does: the encoder is causal, so a prompt's end changes no earlier state.
    """
    site = Site("text_encoder", "encoder.layers.8", 768)
    sae = TopKSAE(SAEConfig(d=768, m=2 * count, k=32), seed=0)
    prompts = [PROMPT, *(f"a photo of one {name}" for name in OBJECTS)]
    every = SAEEdit.from_sae(sae, site, list(range(2 * count)), gate="whole", lead=1)
    found = [every.preacts(read.states[site])[:, 1:].amax(1) for read in capture(pipe, [site], prompts)]
    loudest = torch.cat(found).clamp(min=0)
    threshold, canary = 1.01 * loudest[0], loudest[1:].argmax(0)
    opens = (loudest[1:].amax(0) > 1.01 * threshold).nonzero().flatten().tolist()[:count]
    model, made = made_for(pipe), list[Eraser]()
    for n in opens:
        name = f"concept {len(made)}"
        prompt = f"{prompts[1 + int(canary[n])]}, {name}"
        edits = (part(every, n, threshold),)
        made.append(Eraser(edits, name, name, (name,), model, canary=(prompt,), canary_shift=1e-9))
    return made


def part(every: SAEEdit, n: int, threshold: torch.Tensor) -> SAEEdit:
    """Return the edit of one neuron."""
    rows: dict[str, Any] = {
        name: getattr(every, name)[n : n + 1].clone() for name in ("indices", "W_enc", "b_enc", "W_dec")
    }
    levels: dict[str, Any] = {"threshold": threshold[n : n + 1].clone(), "typical": threshold[n : n + 1].clone()}
    return SAEEdit(every.site, b_pre=every.b_pre, **rows, **levels, gate="whole", lead=1, sae_digest=every.sae_digest)


def shortly_proved(eraser: Eraser) -> Eraser:
    """Return the eraser with a single canary prompt."""
    return Eraser(eraser.edits, eraser.name, "all", (), eraser.made_for, canary=eraser.canary[:1], canary_shift=1e-9)


if __name__ == "__main__":
    main()
