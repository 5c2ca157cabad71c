"""Time from a change of the strength in the studio to the pictures that the page shows, next to a first answer.

    python benchmarks/speed/studio.py --out docs/results/studio.json

A first answer to a prompt generates two pictures and reads the neuron. A change of the strength generates one, since
the picture without the eraser is kept. Both, and a picture by the bare pipeline, run in turns on the bundled model, 20
steps each, on one thread. Times are seconds of the thread's processor, which other load affects less; the ratios are
medians with a bootstrap interval. The browser, which draws two small PNGs, is not in them.

`page` are seconds of the clock from a new strength in Chromium to the new picture in it, with as many threads as
`excise app` has, and `page_processor` are the processor's seconds that this process took for it. `load` says what else
ran: the processes per core that wanted to run in the minute before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from guard_cost import clocked, median_of

from benchmarks.figures.studio_picture import visited
from excise import erase, reference
from excise.app.bench.provenance import provenance
from excise.app.studio.readings import verdict
from excise.app.studio.studio import Candidate, Studio
from excise.bench.pictures import png
from excise.files import write_atomic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="prompts")
    parser.add_argument("--out", type=Path, default=Path("docs/results/studio.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipe = reference.load()
    eraser = erase(pipe, "gun")
    times: dict[str, list[float]] = {"bare": [], "first": [], "change": []}
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(pipe, {"gun": Candidate(eraser, Path(folder))})

        def answer(seed: int, strength: float) -> None:
            seen = studio.compare(eraser, "a gun on grass", seed, strength)
            verdict(eraser, studio.read(eraser, "a gun on grass"), seen, strength)
            png(seen.before), png(seen.after)

        answer(0, 1.0)  # what only the first call of a process does
        for seed in range(1, options.rounds + 1):
            times["bare"].append(clocked(lambda: studio.plain("a horse on grass", seed)))  # noqa: B023
            times["first"].append(clocked(lambda: answer(seed, 1.0)))  # noqa: B023
            times["change"].append(clocked(lambda: answer(seed, 0.5)))  # noqa: B023
        studio.close()
    loaded = os.getloadavg()[0] / (os.cpu_count() or 1)
    torch.set_num_threads(os.cpu_count() or 1)
    times["page"], times["page_processor"] = in_page(options.rounds)
    results: dict[str, Any] = {
        **provenance(f"python benchmarks/speed/studio.py --rounds {options.rounds}"),
        "load": round(loaded, 2),
        "seconds": {name: statistics.median(some) for name, some in times.items()},
        "change_to_first": ratio(times["change"], times["first"]),
        "change_to_bare": ratio(times["change"], times["bare"]),
    }
    print(json.dumps(results, indent=1))
    write_atomic(options.out, json.dumps(results, indent=1) + "\n")


def in_page(rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds from each new strength in the page to its picture: of the clock, and of the processor."""
    taken, computed = list[float](), list[float]()
    with visited(viewport={"width": 1160, "height": 900}) as page:
        shown = "[...document.querySelectorAll('#erase-pictures img')].map(img => img.src).join(' ')"
        for n in range(rounds + 1):
            before = page.evaluate(shown)
            begun, used = time.perf_counter(), time.process_time()
            page.fill("#erase-strength input[type=number]", f"{0.5 + n / 20:g}")
            page.keyboard.press("Tab")
            page.wait_for_function(
                "before => { const all = [...document.querySelectorAll('#erase-pictures img')];"
                " return all.length == 2 && all.map(img => img.src).join(' ') !== before"
                " && all.every(img => img.complete && img.naturalWidth > 0); }",
                arg=before,
            )
            taken.append(time.perf_counter() - begun)
            computed.append(time.process_time() - used)
    return taken[1:], computed[1:]  # the first attaches the eraser


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Return the median ratio of paired times, with a 95 % bootstrap interval."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return dict(zip(("ratio", "low", "high"), median_of(ratios), strict=True))


if __name__ == "__main__":
    main()
