"""Every method on Canvas: choose each method's settings with the same budget, then compare all methods.

    python -m benchmarks.figures.peers --work build/peers
    python -m benchmarks.figures.peers --work build/peers --device cuda --jobs 14

The script has six parts (`--parts`):

- tuning: try four settings of each method on three concepts that are in no other table, and four more settings if the
  best one was at an edge or the four did equally well;
- table: compare all methods, each with its best settings, on every other one of Canvas's standard concepts with every
  attack (`--concepts` for more);
- counts: count the prompts of the comparison on which the unerased model generates what is asked for;
- authors: compare the chosen settings with those of the method's paper (`--preset paper`), for methods that need no
  training;
- distances: generate more pictures that are unrelated to the concept, for their Fréchet distance;
- costs: measure what each method costs, on the CPU with nothing else in the process.

It writes docs/results/peers.json and .md, the Pareto plot and a strip of pictures of each method. Results in the file
are not computed again, and unfinished runs resume. If `--minutes` was too short for a method, the next call continues
with it; it needs the same `--work`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.figures.drawing import Drawing, begun, comparable, complete
from benchmarks.figures.peers_page import kept, page
from benchmarks.figures.peers_plan import (
    AUTHORS,
    COLUMNS,
    COMPARED_ON,
    COMPARING,
    COSTED_ON,
    COUNTING,
    FURTHER,
    GRIDS,
    TUNED_ON,
    TUNING,
    UNTRAINED,
    best,
    label,
    of_paper,
    shown,
)
from excise.app.bench.provenance import provenance
from excise.app.bench.runs import report
from excise.bench.items.cases import picture_of
from excise.bench.machine import machine
from excise.bench.results import BASELINE
from excise.bench.run import Run, Unit
from excise.files import write_atomic, write_folder
from excise.methods import METHODS
from excise.neurons import plots

COMMAND = "python -m benchmarks.figures.peers"
PARTS = ("tuning", "table", "counts", "authors", "distances", "costs")


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
        "command": COMMAND,
        "by": {},
        **{part: {} for part in PARTS},
    }
    if options.out.exists():
        results |= json.loads(options.out.read_text()) | {"command": COMMAND}
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
    if "counts" in parts and not results["counts"]:
        keep("counts", prompts_counted(options.work / "counts", concepts, draw), options.device)
    if "authors" in parts and (rows := authors(options.work / "authors", chosen, results["authors"], concepts, draw)):
        keep("authors", rows, options.device)
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


def lacking(rows: Mapping[str, Any], chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the methods, with their chosen settings, that have no row."""
    return {name: setting for name, setting in chosen.items() if rows.get(name, {}).get("setting") != setting}


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
        | {"by_concept": found["methods"][row]["concepts"]}
        for name, row in rows.items()
    }


def prompts_counted(folder: Path, concepts: Sequence[str], draw: Drawing) -> dict[str, int]:
    """Return on how many pictures each figure of the comparison is, as far as the attacks do not search."""
    run = begun(folder, "standard", [], concepts, COUNTING)
    draw(run)
    figures = report(run)["methods"][BASELINE]["figures"] if complete(run, [BASELINE]) else {}
    return {name: figure["pictures"] for name, figure in figures.items() if figure.get("pictures")}


def authors(
    folder: Path, chosen: Mapping[str, str], known: Mapping[str, Any], concepts: Sequence[str], draw: Drawing
) -> dict[str, Any]:
    """Return the rows that are not known yet: of each untrained method, with its chosen and with its paper's settings.

    The chosen settings are measured again, because a paired test needs both on the same prompts.
    """
    rows = []
    for name in (name for name in UNTRAINED if name in chosen):
        rows += [label(name, own) for own in (chosen[name], of_paper(name, chosen[name])) if own is not None]
    if set(rows) <= set(known):
        return {}
    run = begun(folder, "standard", rows, concepts, AUTHORS)
    draw(run)
    found = report(run)["methods"]
    return {
        row: {key: found[row][key] for key in ("figures", "concepts", "refused")}
        for row in complete(run, [BASELINE, *rows])
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


def strip(run: Run, row: str, side: int = 64) -> Image.Image:
    """Return a method's pictures of the shown cases, side by side."""
    made = Image.new("RGB", (side * len(shown()), side), "white")
    for column, case in enumerate(shown()):
        path = picture_of(run, Unit(row, case.concept), case.id)
        if path.exists():
            with Image.open(path) as picture:
                made.paste(picture.convert("RGB"), (side * column, 0))
    return made


if __name__ == "__main__":
    main()
