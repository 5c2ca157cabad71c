"""What the processor alone does to read prompts: tokenising, sorting, packing and cutting, without an encoder's layers.

    python benchmarks/speed/reading_host.py --before ../older-checkout --out docs/results/reading_host.json

On a GPU the layers of CLIP-L take a hundredth of a millisecond a prompt, and this is what one process is held up by.
The layers of the bundled text encoder are replaced by the identity, and 4,096 prompts of random words (`capturing.py`)
are read by length with a tenth of the padding. `--before` names a checkout of the version to compare with. Both run in
turns, each in a process of its own, which first checks that its states are the same bits as those of the other.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPTS, READINGS = 4096, 3
_CHILD = "--child"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="threads of the tokenizer's core")
    parser.add_argument("--out", type=Path, default=Path("docs/results/reading_host.json"))
    options = parser.parse_args()
    from capturing import sentences
    from timing import compared

    from excise.app.bench.provenance import provenance
    from excise.files import write_atomic

    trees = {"before": options.before, "now": Path(__file__).resolve().parents[2]}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.json"
        prompts.write_text(json.dumps(sentences(PROMPTS)))
        for _ in range(options.rounds):
            for name, tree in trees.items():
                found[name].append(_in_process(tree.resolve(), prompts, options.threads))
    assert len({one["digest"] for several in found.values() for one in several}) == 1, "the states differ"
    result: dict[str, Any] = {
        "command": f"python benchmarks/speed/reading_host.py --before CHECKOUT --threads {options.threads}",
        "prompts": PROMPTS,
        "threads": options.threads,
        "before_commit": _commit(options.before),
    }
    for unit in ("cpu", "wall"):
        seconds = {name: [one[unit] for one in several] for name, several in found.items()}
        result[unit] = {
            **{f"{name}_prompts_a_second": PROMPTS / statistics.median(times) for name, times in seconds.items()},
            "as_fast": compared(seconds["before"], seconds["now"]),
        }
        rates = result[unit]
        print(
            f"{unit:5} {rates['before_prompts_a_second']:7.0f} -> {rates['now_prompts_a_second']:7.0f} prompts/s, "
            f"{rates['as_fast']['ratio']:.2f} x ({rates['as_fast']['low']:.2f} to {rates['as_fast']['high']:.2f})"
        )
    result |= provenance(result["command"], bundled=True)
    known = json.loads(options.out.read_text()) if options.out.exists() else {}
    write_atomic(options.out, json.dumps({**known, f"threads {options.threads}": result}, indent=1) + "\n")


def _commit(tree: Path) -> str:
    return subprocess.run(
        ["git", "-C", str(tree), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def _in_process(tree: Path, prompts: Path, threads: int) -> dict[str, Any]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "RAYON_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }
    done = subprocess.run(
        [sys.executable, __file__, _CHILD, str(prompts)],
        env=environment, cwd=tree, capture_output=True, text=True, check=True,
    )  # fmt: skip
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert measured["code"].startswith(str(tree)), measured["code"]
    return measured


def child() -> None:
    """Read the prompts, and print the digest of the states and the median seconds of a reading."""
    import torch

    import excise
    from excise import reference
    from excise.sites import PRESETS, capture_by_length

    torch.set_num_threads(1)
    pipe, site, prompts = reference.load(), PRESETS["reference"][0], json.loads(Path(sys.argv[-1]).read_text())

    def vectors() -> list[torch.Tensor]:
        batches = capture_by_length(pipe, [site], prompts, padding=0.1)
        return [batch.features.without_bos().vectors(site) for batch in batches]

    digest = hashlib.sha256()
    for part in vectors():  # with the layers
        digest.update(part.float().numpy().tobytes())
    layer = next(type(m) for m in pipe.text_encoder.modules() if type(m).__name__ == "CLIPEncoderLayer")
    layer.forward = lambda self, hidden, *args, **kwargs: hidden
    wall, cpu = [], []
    for _ in range(READINGS):
        began, used = time.perf_counter(), time.process_time()
        vectors()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    answer = {"digest": digest.hexdigest(), "wall": statistics.median(wall), "cpu": statistics.median(cpu)}
    print(json.dumps({**answer, "code": str(Path(excise.__file__).resolve())}))


if __name__ == "__main__":
    child() if _CHILD in sys.argv else main()
