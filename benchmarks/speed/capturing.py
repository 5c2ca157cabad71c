"""Speed and memory of reading prompts for an SAE.

    python benchmarks/speed/capturing.py --out docs/results/capturing.json

`speed` is prompts a second on an encoder of CLIP-L's shape with random weights, at Stable Diffusion 1.4's Site. The
variants read the same prompts in turns: padded to 77 positions with all layers (like a plain forward hook), with
`capture`, and by length with all, a tenth and none of the padding. `drawn` are prompts of random words. Their lengths
are log-normal: nine in ten have 6 to 50 tokens, like most of DiffusionDB's prompts (Wang et al. 2023). `templated` are
the pairs and controls of a concept.

`memory` is the process's resident memory while the bundled text encoder reads 100,000 `drawn` prompts to shards, and
while an SAE is trained on them once. The script reports allocated memory and pages of files separately. The latter are
mostly libraries' code, and the kernel decides how many to map.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from erasing import prompts_of
from shapes import clip_l
from timing import compared, interleaved

from excise import reference
from excise.app.bench.provenance import provenance
from excise.app.reading import vectors as kept
from excise.app.training import text
from excise.concepts import from_templates
from excise.files import write_atomic
from excise.reference import data
from excise.sae import TrainConfig
from excise.sites import PRESETS, Features, Site, capture, capture_by_length, resolve
from excise.sites.activations.capture import run
from excise.sites.activations.tokenising import tokenise

MEDIAN, SPREAD = 13, 0.65
"""Parameters of the log-normal number of words; a word has 1.3 tokens."""
WORDS = data.folder() / "emoji_words.txt"
MANY, SHARE = 100_000, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", default="speed,memory")
    parser.add_argument("--out", type=Path, default=Path("docs/results/capturing.json"))
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name, part in (("speed", speed), ("memory", memory)):
        if name in options.parts.split(","):
            results[name] = part(options)
            results[name] |= provenance(results[name]["command"], bundled=False, device=options.device)
            write_atomic(options.out, json.dumps(results, indent=1) + "\n")


def sentences(n: int, seed: int = 0) -> list[str]:
    """Return `n` prompts of random words."""
    rng = random.Random(seed)
    words = sorted({word for line in WORDS.read_text().splitlines() for word in line.lower().split() if word.isalpha()})
    return [
        " ".join(rng.choices(words, k=max(1, round(rng.lognormvariate(math.log(MEDIAN), SPREAD))))) for _ in range(n)
    ]


def speed(options: argparse.Namespace) -> dict[str, Any]:
    pipe, site = clip_l(options.device), PRESETS["sd14"][0]
    corpora = {
        "drawn": (sentences(options.prompts), (1, SHARE, 0)),
        "templated": (prompts_of(from_templates("gun", ("gun",)))[: options.prompts], (0,)),
    }
    return {
        "command": f"python benchmarks/speed/capturing.py --prompts {options.prompts} --device {options.device}",
        "site": site.key,
        "corpora": {name: read(pipe, site, *corpus, options) for name, corpus in corpora.items()},
    }


def read(
    pipe: Any, site: Site, prompts: list[str], shares: Sequence[float], options: argparse.Namespace
) -> dict[str, Any]:
    """Return the lengths of the prompts, and the speed of each way to read them."""
    lengths = tokenise(pipe, "text_encoder", prompts)[1].sum(1).tolist()

    def padded() -> None:
        kept: list[torch.Tensor] = []
        handle = resolve(pipe, site).register_forward_hook(lambda module, args, output: kept.append(output))
        for start in range(0, len(prompts), 64):
            run(pipe, "text_encoder", prompts[start : start + 64])
        handle.remove()

    def vectors(batches: Iterable[Features]) -> None:
        for batch in batches:
            batch.vectors(site)
        if options.device != "cpu":
            torch.cuda.synchronize()

    def by_length(share: float) -> Callable[[], None]:
        return lambda: vectors(batch.features for batch in capture_by_length(pipe, [site], prompts, padding=share))

    seconds = interleaved(
        {
            "padded, all layers": padded,
            "capture": lambda: vectors(capture(pipe, [site], prompts)),
            **{f"by length, {share:.0%} of the padding": by_length(share) for share in shares},
        },
        options.rounds,
    )
    plain = seconds["padded, all layers"]
    rows: dict[str, dict[str, Any]] = {
        name: {"prompts_a_second": len(prompts) / statistics.median(times), "as_fast": compared(plain, times)}
        for name, times in seconds.items()
    }
    quartiles, mean = statistics.quantiles(lengths, n=4), statistics.fmean(lengths)
    print(f"{len(prompts)} prompts of {mean:.1f} tokens, quartiles {quartiles}, {lengths.count(77)} cut, at {site.key}")
    for name, row in rows.items():
        ratio = row["as_fast"]
        print(
            f"{name:34} {row['prompts_a_second']:8.1f} prompts/s  {ratio['ratio']:.2f} x padded "
            f"({ratio['low']:.2f} to {ratio['high']:.2f})"
        )
    return {"prompts": len(prompts), "tokens": mean, "quartiles": quartiles, "cut": lengths.count(77), "rows": rows}


def memory(options: argparse.Namespace) -> dict[str, Any]:
    pipe, site, prompts = reference.load(), PRESETS["reference"][0], sentences(MANY)
    kept.IN_MEMORY = 0
    reading: list[Seen] = []
    trained: list[Seen] = []

    def captured(n: int) -> None:
        reading.append(Seen((reading[-1].done if reading else 0) + n, *resident()))

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "sae"
        config = TrainConfig(expansion=4, tokens=2_000_000, log_every=20)
        text.train_sae(
            pipe, site, prompts, config, out, card={}, captured=captured, padding=SHARE,
            progress=lambda line: trained.append(Seen(line.tokens, *resident())),
        )  # fmt: skip
    results: dict[str, Any] = {"command": "python benchmarks/speed/capturing.py --parts memory", "prompts": MANY}
    for name, seen in (("reading", reading), ("training", trained)):
        tenths = sampled(seen)
        results[name] = [tenth._asdict() for tenth in tenths]
        listed = ", ".join(f"{tenth.done}: {tenth.own / 1e6:.0f} MB" for tenth in tenths)
        high, low = (pick(tenth.own for tenth in tenths[1:]) for pick in (max, min))
        print(f"{name}: {listed}; {high / low - 1:+.1%}")
    return results


class Seen(NamedTuple):
    """Progress of a job, and the process's memory at that point, in bytes."""

    done: int
    own: int
    files: int


def sampled(seen: Sequence[Seen], n: int = 10) -> list[Seen]:
    """Return the peak memory of each tenth."""
    last = seen[-1].done
    tenths = [[row for row in seen if last * i < n * row.done <= last * (i + 1)] for i in range(n)]
    return [Seen(own[-1].done, max(row.own for row in own), max(row.files for row in own)) for own in tenths if own]


def resident() -> tuple[int, int]:
    """Return this process's resident bytes: allocated memory, and pages of files."""
    _, whole, files, *_ = (
        int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in Path("/proc/self/statm").read_text().split()
    )
    return whole - files, files


if __name__ == "__main__":
    main()
