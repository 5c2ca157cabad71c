"""Every method on Canvas: choose each method's settings with the same budget, then compare all methods.

    python benchmarks/figures/peers.py --work build/peers
    python benchmarks/figures/peers.py --work build/peers --device cuda --jobs 14

The script has four parts:

- tuning: try four settings of each method on three concepts that are in no other table, and four more settings if the
  best one was at an edge or the four did equally well;
- table: compare all methods, each with its best settings, on every other one of Canvas's standard concepts with every
  attack (`--concepts` for more);
- distances: generate more pictures that are unrelated to the concept, for their Fréchet distance;
- costs: measure what each method costs, on the CPU with nothing else in the process.

It writes docs/results/peers.json and .md, the Pareto plot and a strip of pictures of each method. Results in the file
are not computed again, and unfinished runs resume. If `--minutes` was too short for a method, the next call continues
with it; it needs the same `--work`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from excise.app.bench.figures import plain
from excise.app.bench.provenance import provenance
from excise.app.bench.runs import report, resume, start
from excise.app.bench.tables import LEFT, MOVED
from excise.app.erase.many import stop
from excise.bench.canvas.families import UNTOUCHED, cases
from excise.bench.canvas.sizes import STANDARD
from excise.bench.machine import machine
from excise.bench.results import BASELINE
from excise.bench.run import Run, Unit
from excise.bench.suite import Case
from excise.bench.worker import picture_of
from excise.errors import ExciseError
from excise.files import write_atomic, write_folder
from excise.methods import METHODS
from excise.neurons import plots

TUNED_ON = ("apple", "bus", "pastel")
TUNING = {"prompts": 8, "searches": False, "only": ("direct", "mixed", "unrelated", "style")}
"""Canvas's settings for tuning: the families that decide the score and its ties, which fill one batch."""
COMPARED_ON = STANDARD[::2]
"""Half of the standard concepts: on two cores, a method's pictures of one concept take about a minute."""
COMPARING: dict[str, Any] = {
    "prompts": 4,
    "prefix": {"iterations": 20, "batch": 4},
    "inversion": {"iterations": 60, "batch": 4},
}
"""Canvas's settings for the comparison. With Canvas's defaults, the white-box attacks would take two thirds of the
time."""
FURTHER: dict[str, Any] = {"prompts": 8, "searches": False, "only": UNTOUCHED, "batch": 16}
"""Canvas's settings for the Fréchet distances: enough pictures over eight concepts; those of a unit fill one batch."""
COSTED_ON = ("gun",)
"""The concept to measure costs on, with the settings of tuning: one batch of pictures."""
PARTS = ("tuning", "table", "distances", "costs")
SHOWN = ("gun", "tiger", "ink")
"""Concepts of the strips of pictures."""
CASES = ("direct", "mixed", "unrelated")
"""Families whose first prompt the strips show."""
COLUMNS = ("ua", "ira_ratio", "cra_ratio", "mixed", "identical")
GRIDS: dict[str, tuple[str, ...]] = {
    "safety-filter": ("threshold=0.3", "threshold=0.45", "threshold=0.6", "threshold=none"),
    "uce": (
        *("guide=", "guide=,lam=0.1", "guide=,keep=0.1", "guide=,erase=4"),
        *("guide=,lam=100", "guide=,lam=1000", "guide=,keep=10", "guide=thing"),
    ),
    "rece": (
        *("guide=,lam=0.1,rounds=3", "guide=,lam=0.1,keep=1,rounds=3", "guide=,lam=0.5,rounds=3"),
        *("guide=,lam=0.1,rounds=5", "guide=,lam=1,rounds=3", "guide=,lam=2,rounds=3"),
        *("guide=,lam=0.5,rounds=5", "guide=,lam=1,rounds=5", "guide=thing,lam=0.1,rounds=3"),
        *("guide=thing,lam=0.5,rounds=3", "guide=thing,lam=2,rounds=3", "guide=thing,lam=0.5,rounds=5"),
    ),
    "esd-x": tuple(f"steps=20,iterations=60,lr={lr}" for lr in ("1e-4", "3e-4", "1e-3", "3e-3")),
    "esd-u": (
        *(f"steps=20,iterations=60,lr={lr}" for lr in ("3e-5", "1e-4", "3e-4", "1e-3")),
        *(f"steps=20,iterations={n},lr={lr}" for n, lr in ((60, "1e-5"), (200, "1e-5"), (20, "1e-4"), (20, "3e-4"))),
    ),
    "sld": (
        *("level=medium,warmup=4,scale=0", "level=strong,warmup=3,scale=0"),
        *("level=max,warmup=0,scale=0", "level=max,warmup=0,scale=20000"),
        *(f"level=strong,warmup=1,scale={scale}" for scale in (0, 5000, 20000)),
        "level=max,warmup=3,scale=0",
    ),
    "ca": tuple(
        f"steps=20,guidance=4,pictures=16,batch=4,iterations=40,lr={lr}" for lr in ("1e-4", "3e-4", "1e-3", "3e-3")
    ),
    "sa": tuple(
        f"steps=20,guidance=4,pictures=16,fisher=16,timesteps=4,batch=4,iterations=60,lr=1e-3,lam={lam}"
        for lam in ("0.005", "0.05", "0.5", "5")
    ),
    "spm": tuple(
        f"steps=20,iterations=80,lr={lr},anchoring={la}"
        for lr, la in (("3e-4", 100), ("1e-3", 100), ("3e-3", 100), ("1e-3", 1000))
    )
    + tuple(
        f"steps=20,iterations={n},lr={lr},anchoring={la}"
        for n, lr, la in ((160, "2e-3", 100), (160, "2e-3", 10), (80, "3e-3", 1000), (160, "3e-3", 300))
    ),
    "dumo": tuple(
        f"steps=10,iterations={n},bins=5,alpha_iterations=20,pairs=8,lr={lr},keep={keep}"
        for n, lr, keep in (
            *((60, "1e-3", 1), (60, "2e-3", 1), (60, "3e-3", 1), (60, "2e-3", 0.3)),
            *((60, "3e-3", 0.1), (120, "2e-3", 0.3), (120, "3e-3", 0.3), (120, "3e-3", 0.1)),
        )
    ),
    "mace": ("guidance=4", "guidance=4,lr=1e-3", "guidance=4,keep=1", "guidance=4,keep=100,lr=1e-3"),
    "safree": ("most=10", "most=20", "most=0", "alpha=0,most=0"),
    "casteer": ("beta=1", "beta=2", "beta=3", "beta=4"),
    "concept-steerers": ("lam=0.25", "lam=0.5", "lam=1", "lam=2"),
    "itd": (
        "factor=-1,features=128",
        "factor=-3,features=128",
        "factor=-8,features=128",
        "factor=-3,features=32",
        *(f"factor={factor},features={n}" for factor, n in ((-2, 32), (-5, 32), (-3, 16), (-5, 16))),
    ),
    "advunlearn": tuple(
        f"steps=20,iterations=40,attack_steps=5,retain=3,lr={lr}" for lr in ("3e-5", "1e-4", "3e-4", "1e-3")
    ),
    "saeuron": (
        *("k=3,gamma=-1", "k=3,gamma=-4", "k=7,gamma=-1", "k=13"),
        *("k=26", "k=64", "k=13,gamma=-2", "k=26,gamma=-2"),
    ),
    "saemnesia": ("gamma=0", "gamma=-0.4", "gamma=-0.7", "gamma=-1"),
    "saemnesia-text": ("", "lam=0.75", "lam=1", "lam=2"),
    "snce": ("", "lam=0.75", "lam=1", "lam=2"),
}
"""Settings to try; an empty string is the method's defaults. The chosen settings become the bundled model's
(`excise.app.models.resolve.TUNED`). So each entry names every setting that the chosen one sets, and does not depend on
the choice."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/peers"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results/peers.json"))
    parser.add_argument("--methods", default=",".join(GRIDS), help="methods to tune and compare")
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to run; an empty text only rewrites the page")
    parser.add_argument("--concepts", default=",".join(COMPARED_ON), help="concepts of the comparison")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes that generate at once")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="time limit for a part")
    options = parser.parse_args()
    results: dict[str, Any] = {
        "command": "python benchmarks/figures/peers.py",
        "by": {},
        **{part: {} for part in PARTS},
    }
    if options.out.exists():
        results |= json.loads(options.out.read_text())
    names, parts, concepts = (listed.split(",") for listed in (options.methods, options.parts, options.concepts))
    draw = Drawing(options.device, options.jobs, options.minutes)

    def keep(part: str, rows: Mapping[str, Any], device: str) -> None:
        results[part] |= rows
        origin = provenance(results["command"], METHODS, device=device)
        results["origins"] = {**results.get("origins", {}), part: origin}
        stamp = f"{origin['date']}, {machine(device)}, commit {origin['commit'][:12]}"
        results["by"][part] = [*dict.fromkeys([*results["by"].get(part, []), stamp])]
        write_atomic(options.out, json.dumps(results, indent=1) + "\n")

    grids = {name: [own for own in GRIDS[name] if own not in results["tuning"].get(name, {})] for name in names}
    if "tuning" in parts and any(grids.values()):
        found = tuned(options.work / "tuning", {name: own for name, own in grids.items() if own}, draw)
        keep("tuning", {name: results["tuning"].get(name, {}) | rows for name, rows in found.items()}, options.device)
    chosen = {name: best(results["tuning"][name]) for name in names if name in results["tuning"]}
    for part in {"table", "distances"} & set(parts):
        results[part] = {name: row for name, row in results[part].items() if row["concepts"] == concepts}
    if "table" in parts and (settings := lacking(results["table"], chosen)):
        rows = compared(options.work / "table", settings, concepts, draw, options.out.with_suffix(""))
        keep("table", rows, options.device)
    if "distances" in parts and (settings := lacking(results["distances"], chosen)):
        rows = moved(options.work / "distances", settings, concepts, draw, options.work / "table" / "erasers")
        keep("distances", rows, options.device)
    if "costs" in parts and (settings := lacking(results["costs"], chosen)):
        alone = Drawing("cpu", 1, options.minutes)
        keep("costs", costed(options.work / "costs", settings, alone), "cpu")
    if results["table"]:
        points = {name: (kept(own["figures"]), own["figures"]["ua"]["value"]) for name, own in results["table"].items()}
        front = plots.front(points, "others kept (mean of IRA and CRA)", "erased (UA)")
        plots.save(front, options.out.with_name("peers-front.png"))
    write_atomic(options.out.with_suffix(".md"), page(results))
    print(page(results))


class Drawing:
    """Runs Canvas runs: the device, the number of processes, and the time limit."""

    def __init__(self, device: str, jobs: int, minutes: float) -> None:
        self.device, self.jobs, self.seconds = device, jobs, 60 * minutes

    def __call__(self, run: Run) -> None:
        """Finish the run. Ctrl-C and the time limit keep the pictures so far."""
        until = time.monotonic() + self.seconds
        spawned = multiprocessing.get_context("spawn")
        workers = [spawned.Process(target=_draw, args=(run.folder, self.device, self.jobs)) for _ in range(self.jobs)]
        for worker in workers:
            worker.start()
        try:
            while any(worker.is_alive() for worker in workers) and time.monotonic() < until:
                time.sleep(2)
                done, left = (len(run.units(state)) for state in ("done", "todo"))
                print(
                    f"\r{run.folder.name}: {done} of {len(_units(run))} done, {left} not started ", end="", flush=True
                )
        finally:
            stop(workers, 20)
            print()


def lacking(rows: Mapping[str, Any], chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the methods, with their chosen settings, that have no row."""
    return {name: setting for name, setting in chosen.items() if rows.get(name, {}).get("setting") != setting}


def begun(folder: Path, size: str, rows: Sequence[str], concepts: Sequence[str], settings: Any) -> Run:
    """Return the run in the folder if it contains these rows, or start a new one.

    Raises:
        ExciseError: The run in the folder has other rows.
    """
    if not (folder / "run.json").exists():
        return start(folder, "canvas", size, rows, concepts, settings)
    run = Run(folder)
    if not set(rows) <= set(run.plan["methods"]):
        raise ExciseError(f"{folder} was started with other methods or settings; choose another folder with --work")
    return run


def complete(run: Run, rows: Iterable[str]) -> list[str]:
    """Return the rows that are complete, if the unerased model's is complete too."""
    done = set(run.units("done"))
    whole = {row for row in run.plan["methods"] if {Unit(row, concept) for concept in run.plan["concepts"]} <= done}
    return [row for row in rows if {row, BASELINE} <= whole]


def comparable(run: Run, labels: Mapping[str, str]) -> dict[str, str]:
    """Return the complete rows of the methods after the unerased model's, or nothing if no method's is complete."""
    whole = complete(run, labels.values())
    rows = {name: row for name, row in labels.items() if row in whole}
    return {BASELINE: BASELINE, **rows} if rows else {}


def _draw(folder: Path, device: str, jobs: int) -> None:
    """Work on the run in this process, with its share of the cores."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    parent = os.getppid()

    def drawn(pictures: float) -> None:
        if os.getppid() != parent:  # the parent was killed and cannot stop this process
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        resume(Run(folder), drawn, device)


def _units(run: Run) -> list[Unit]:
    return [Unit(row, concept) for row in run.plan["methods"] for concept in run.plan["concepts"]]


def tuned(folder: Path, grids: Mapping[str, Sequence[str]], draw: Drawing) -> dict[str, Any]:
    """Return each setting's figures on the tuning concepts and its seconds to fit, for methods whose settings are all
    tried."""
    labels = {name: {setting: label(name, setting) for setting in own} for name, own in grids.items()}
    every = [row for own in labels.values() for row in own.values()]
    run = begun(folder, "quick", every, TUNED_ON, TUNING)
    draw(run)
    found, whole = report(run)["methods"], set(complete(run, every))
    return {
        name: {
            setting: {
                **{key: found[row]["figures"].get(key, {}).get("value") for key in COLUMNS},
                "seconds": found[row]["cost"]["erase_seconds"],
                "refused": len(found[row]["refused"]),
            }
            for setting, row in own.items()
        }
        for name, own in labels.items()
        if whole.issuperset(own.values())
    }


def label(name: str, setting: str) -> str:
    """Return the name of a run's row for a method and its settings."""
    return f"{name}:{setting}" if setting else name


def compared(
    folder: Path, settings: Mapping[str, str], concepts: Sequence[str], draw: Drawing, strips: Path
) -> dict[str, Any]:
    """Return the rows of the methods and the unerased model on the concepts, and write their strips of pictures."""
    labels = {name: label(name, setting) for name, setting in settings.items()}
    run = begun(folder, "standard", list(labels.values()), concepts, COMPARING)
    draw(run)
    found, rows = report(run), comparable(run, labels)
    for name, row in rows.items():
        save_image(strip(run, row), strips / f"{name}.png")
    return {
        name: {"setting": settings.get(name, ""), "concepts": found["concepts"], "drawn_with": found["drawn_with"]}
        | {key: found["methods"][row][key] for key in ("figures", "refused")}
        for name, row in rows.items()
    }


def moved(
    folder: Path, settings: Mapping[str, str], concepts: Sequence[str], draw: Drawing, erasers: Path
) -> dict[str, Any]:
    """Return how far the methods change pictures that are unrelated to the concept, over all concepts together, and the
    floor from other seeds of the unerased model. Erasers in the folder `erasers` are reused."""
    labels = {name: label(name, setting) for name, setting in settings.items()}
    run = begun(folder, "standard", list(labels.values()), concepts, FURTHER)
    for unit in run.units("todo"):
        fitted, copy = (home / unit.file for home in (erasers, run.folder / "erasers"))
        if fitted.exists() and not copy.exists():
            write_folder(copy, {file.name: file.read_bytes() for file in fitted.iterdir()})
    draw(run)
    found, rows = report(run), comparable(run, labels)
    return {
        name: {"setting": settings.get(name, ""), "concepts": found["concepts"]}
        | {key: found["methods"][row]["figures"][key] for key in ("frechet", "frechet_floor", "identical")}
        for name, row in rows.items()
    }


def costed(folder: Path, settings: Mapping[str, str], draw: Drawing) -> dict[str, Any]:
    """Return the methods' costs: seconds to fit a concept, seconds added to a picture, bytes, and peak memory."""
    labels = {name: label(name, setting) for name, setting in settings.items()}
    run = begun(folder, "quick", list(labels.values()), COSTED_ON, TUNING)
    draw(run)
    found, whole = report(run)["methods"], complete(run, labels.values())
    return {name: {"setting": settings[name], **found[row]["cost"]} for name, row in labels.items() if row in whole}


def save_image(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)


def kept(figures: Mapping[str, Any]) -> float:
    """Return the mean of IRA and CRA as ratios to the unerased model's."""
    return statistics.fmean(figures[key]["value"] for key in ("ira_ratio", "cra_ratio"))


def shown() -> list[Case]:
    """Return the cases of a strip."""
    return [next(case for case in cases(name, 4) if case.family == family) for name in SHOWN for family in CASES]


def strip(run: Run, row: str, side: int = 64) -> Image.Image:
    """Return a method's pictures of the shown cases, side by side."""
    made = Image.new("RGB", (side * len(shown()), side), "white")
    for column, case in enumerate(shown()):
        path = picture_of(run, Unit(row, case.concept), case.id)
        if path.exists():
            with Image.open(path) as picture:
                made.paste(picture.convert("RGB"), (side * column, 0))
    return made


def score(row: Mapping[str, Any]) -> float:
    """Return the score that settings are chosen by: the mean of UA and of IRA and CRA as ratios to the unerased
    model's."""
    values = [row[key] for key in ("ua", "ira_ratio", "cra_ratio")]
    return sum(values) / 3 if None not in values and not row["refused"] else 0.0


def best(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the setting with the highest score; ties go to more identical unrelated pictures, then to mixed."""
    return max(rows, key=lambda setting: (score(rows[setting]), rows[setting]["identical"], rows[setting]["mixed"]))


def page(results: Mapping[str, Any]) -> str:
    """Return the page: tuning in per cent with the chosen settings bold, then the comparison."""
    lines = [
        "# Every method on Canvas",
        "",
        f"`{results['command']}`.",
        "",
        "## Choosing settings",
        f"We tried four settings of each method on {', '.join(TUNED_ON)}, which are in no other table. If the best one",
        "was at an edge, or the four did equally well, we tried four more (for RECE eight more, because UCE's word in",
        "the concept's place had mattered most). SNCE's defaults, and the SAEs that SNCE, ItD and Concept Steerers",
        "share, were chosen earlier, on up to ten tuning concepts ([bench](../how-to/bench.md)). The setting with the",
        "best mean of UA, IRA and CRA, the latter two as ratios to none's, is chosen, in bold. Trained methods are",
        "trained for a minute or two, less than their papers train Stable Diffusion. Seconds are from processes that",
        f"ran at the same time. {'; '.join(results['by']['tuning'])}.",
        "",
        "esd-x and esd-u were trained with η = 2, twice as strong as in their authors'",
        "code (2026-11-29). Their rows on this page are to be made again.",
        "",
        f"| method | settings | {' | '.join(COLUMNS)} | fit, s |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for name, rows in results["tuning"].items():
        chosen = best(rows)
        for setting, row in rows.items():
            cells = ["n/a" if row[key] is None else f"{100 * row[key]:.1f}" for key in COLUMNS]
            text = (setting or "defaults") + (f" ({row['refused']} refused)" if row["refused"] else "")
            shown = f"**{text}**" if setting == chosen else text
            lines.append(f"| {name} | {shown} | {' | '.join(cells)} | {row['seconds'] or 0:.0f} |")
    tried = {name: results["tuning"].get(name, {}) for name in GRIDS}
    if waiting := [label(name, own) for name, grid in GRIDS.items() for own in grid if own not in tried[name]]:
        lines += ["", f"Still to be tried: {'; '.join(waiting)}."]
    if waiting := [name for name in GRIDS if name not in results["table"]]:
        lines += ["", f"Still to be compared: {', '.join(waiting)}."]
    if results["table"]:
        lines += ["", *_table(results)]
    return "\n".join(lines) + "\n"


def _table(results: Mapping[str, Any]) -> list[str]:
    """Return the comparison, its attacks, costs and pictures."""
    rows = {name: results["table"][name] for name in (BASELINE, *GRIDS) if name in results["table"]}
    prefix, inversion = COMPARING["prefix"], COMPARING["inversion"]
    lines = [
        "## All methods",
        f"On {', '.join(rows[BASELINE]['concepts'])}, of Canvas's {len(STANDARD)} standard concepts;",
        f"{COMPARING['prompts']} prompts a family.",
        "Per cent, except the Fréchet distance in the judge's features. IRA and CRA are ratios to none's.",
        *_distances(results),
        f"{'; '.join(results['by']['table'])}; {'; '.join(rows[BASELINE]['drawn_with'])}.",
        "",
        "| | kind | UA | IRA | CRA | mixed | Fréchet | identical |",
        "|---" * 8 + "|",
    ]
    for name, own in rows.items():
        figures, further = own["figures"], results["distances"].get(name, {})
        cells = [_per_cent(figures.get(key)) for key in ("ua", "ira_ratio", "cra_ratio", "mixed")]
        cells += [plain(further.get("frechet")), _per_cent(further.get("identical"))]
        refused = f" ({len(own['refused'])} refused)" if own["refused"] else ""
        lines.append(f"| {name}{refused} | {METHODS[name].kind} | {' | '.join(cells)} |")
    families = sorted({key for own in rows.values() for key in own["figures"] if key.startswith("asr.")})
    lines += [
        "",
        "![What is erased against what is kept](peers-front.png)",
        "",
        "### What is left when the target is gone",
        *_left(rows),
        "",
        "### Attacks",
        "Share of prompts that still generate the target, of those from which the unerased model generates it. The",
        f"white-box searches use {prefix['iterations']} iterations with {prefix['batch']} noised pictures",
        f"(unlearn-diff, p4d) and {inversion['iterations']} with {inversion['batch']} (inversion), fewer than Canvas's",
        "defaults.",
        "",
        f"| | {' | '.join(key[4:] for key in families)} |",
        "|---" * (len(families) + 1) + "|",
    ]
    for name, own in rows.items():
        lines.append(f"| {name} | {' | '.join(_per_cent(own['figures'].get(key)) for key in families)} |")
    if results["costs"]:
        lines += ["", *_costs(results)]
    prompts = "; ".join(f"“{case.prompt}” without {case.concept}" for case in shown())
    lines += ["", "### Pictures", f"Each column has one prompt and seed: {prompts}.", "", "| | |", "|---|---|"]
    lines += [f"| {name} | ![{name}](peers/{name}.png) |" for name in rows]
    return lines


def _left(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what erased pictures show and how much of the rest is unchanged, if the runs counted it."""
    if not any(name in own["figures"] for own in rows.values() for name in LEFT):
        return [
            "Not counted, because it needs the pictures, and those of these runs were not kept. [canvas.md](canvas.md)",
            "has the figures of the default method. The next full run will have those of all methods.",
        ]
    moved = {name: head for name, head in MOVED.items() if name != "outside"}
    known = {name: head for name, (_, head, _) in LEFT.items()} | moved
    shown = {name: head for name, head in known.items() if any(name in own["figures"] for own in rows.values())}
    lines = [
        "For prompts that name the target and whose picture is without it: share that shows another known object, an",
        "empty scene, or something that neither judge recognises. Then how much of the rest is unchanged.",
        "",
        f"| | {' | '.join(shown.values())} |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for name, own in rows.items():
        lines.append(f"| {name} | {' | '.join(_per_cent(own['figures'].get(key)) for key in shown)} |")
    return lines


def _distances(results: Mapping[str, Any]) -> list[str]:
    """Return the note on the Fréchet distances."""
    if not results["distances"]:
        return []
    floor = results["distances"][BASELINE]["frechet_floor"]
    return [
        f"The distance and the identical share are over {floor['n']} pictures that are unrelated to the concept, from",
        f"a separate run with {FURTHER['prompts']} prompts a family. The unerased model's pictures from other seeds",
        f"are at distance {plain(floor)}. {'; '.join(results['by']['distances'])}. Everything else:",
    ]


def _costs(results: Mapping[str, Any]) -> list[str]:
    lines = [
        "### Costs",
        f"Of erasing {', '.join(COSTED_ON)} in a process that runs alone. {'; '.join(results['by']['costs'])}.",
        "",
        "| | erase, s | added a picture, s | kB | peak, MB |",
        "|---" * 5 + "|",
    ]
    for name in (name for name in GRIDS if name in results["costs"]):
        cost = results["costs"][name]
        cells = [f"{cost['erase_seconds'] or 0:.1f}", f"{cost['added_seconds'] or 0:+.2f}"]
        cells += [f"{(cost['bytes'] or 0) / 1e3:.0f}", f"{(cost['peak_memory'] or 0) / 1e6:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _per_cent(figure: Mapping[str, Any] | None) -> str:
    return "n/a" if not figure or figure["value"] is None else f"{100 * figure['value']:.1f}"


if __name__ == "__main__":
    main()
