"""The page of peers.py: what was tried, the comparison of all methods, its attacks, costs and pictures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.figures import comparison
from benchmarks.figures.peers_plan import (
    AUTHORS,
    COLUMNS,
    COMPARING,
    COSTED_ON,
    FURTHER,
    GRIDS,
    TUNED_ON,
    TUNING,
    asked,
    best,
    label,
    of_paper,
    shown,
)
from excise.app.bench.figures import plain
from excise.app.bench.tables import LEFT, MOVED
from excise.bench.canvas.sizes import STANDARD
from excise.bench.results import BASELINE
from excise.methods import METHODS
from excise.statistics import wilson

MAIN = {"ua": "UA", "ira_ratio": "IRA", "cra_ratio": "CRA", "mixed": "mixed", "identical": "identical"}
LEAST = 32
"""Least number of prompts of a white-box attack whose figure is shown."""
SEARCHED = ("unlearn-diff", "p4d", "adaptive", "inversion")
COSTS = {"erase_seconds": "erase, s", "added_seconds": "added a picture, s", "bytes": "kB", "peak_memory": "peak, MB"}


def page(results: Mapping[str, Any]) -> str:
    """Return the page: tuning in per cent with the chosen settings bold, then the comparison."""
    tuning = asked(TUNED_ON, TUNING["prompts"])
    counts = {key: tuning[key.removesuffix("_ratio")] for key in COLUMNS}
    low = wilson(counts["ua"], counts["ua"]).low
    lines = [
        "# Every method on Canvas",
        "",
        f"`{results['command']}`.",
        "",
        "## Choosing settings",
        f"We tried four settings of each method on {', '.join(TUNED_ON)}, which no comparison of methods reports. If",
        "the best one was at an edge, or the four did equally well, we tried four more (for RECE eight more, because",
        "UCE's word in the concept's place had mattered most). SNCE's defaults were chosen earlier, on up to ten",
        "tuning concepts, and the shape of the SAEs that SNCE, ItD and Concept Steerers share on nine objects: one of",
        "them, cow, is in Canvas's standard size ([bench](../how-to/bench.md)). The setting with the best mean of UA,",
        "IRA and CRA, the latter two as ratios to none's, is chosen, in bold; ties go to more identical pictures, then",
        "to mixed, then to the setting that was tried first. Trained methods are trained for a minute or two, less",
        "than their papers train Stable Diffusion. Seconds are from processes that ran at the same time.",
        f"{'; '.join(results['by']['tuning'])}.",
        "In brackets: the number of pictures, for mixed at most. Few pictures choose coarsely: Wilson's 95 % interval",
        f"of 100.0 over {counts['ua']} pictures begins at {100 * low:.1f}.",
        "",
        "esd-x and esd-u were trained with η = 2, twice as strong as in their authors'",
        "code (2026-11-29). Their rows on this page are to be made again.",
        "",
        f"| method | settings | {' | '.join(f'{key} ({counts[key]})' for key in COLUMNS)} | fit, s |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for name, rows in results["tuning"].items():
        chosen = best(rows)
        for setting, row in rows.items():
            cells = ["n/a" if row[key] is None else f"{100 * row[key]:.1f}" for key in COLUMNS]
            text = (setting or "defaults") + (f" ({row['refused']} refused)" if row["refused"] else "")
            marked = f"**{text}**" if setting == chosen else text
            lines.append(f"| {name} | {marked} | {' | '.join(cells)} | {row['seconds'] or 0:.0f} |")
    tried = {name: results["tuning"].get(name, {}) for name in GRIDS}
    if waiting := [label(name, own) for name, grid in GRIDS.items() for own in grid if own not in tried[name]]:
        lines += ["", f"Still to be tried: {'; '.join(waiting)}."]
    if waiting := [name for name in GRIDS if name not in results["table"]]:
        lines += ["", f"Still to be compared: {', '.join(waiting)}."]
    if results["table"]:
        lines += ["", *_table(results)]
    return "\n".join(lines) + "\n"


def numbered(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the compared methods, each figure with its number of pictures and an interval that respects it."""
    table = {name: results["table"][name] for name in (BASELINE, *GRIDS) if name in results["table"]}
    concepts, prompts = table[BASELINE]["concepts"], COMPARING["prompts"]
    counted, planned = results.get("counts", {}), asked(concepts, prompts)
    further = FURTHER["prompts"] * len(concepts)
    rows = {}
    for name, own in table.items():
        figures = {}
        for key, figure in own["figures"].items():
            whole = key.removesuffix("_ratio")
            base = table[BASELINE]["figures"][whole]["value"] if whole != key else 1.0
            tested = table[BASELINE]["figures"][whole]["n"] if key.startswith("asr.") else len(concepts)
            n = counted.get(whole, planned.get(whole, 0) * tested // len(concepts))
            figures[key] = figure if "pictures" in figure else comparison.widened(figure, n, base)
        if far := results["distances"].get(name):
            figures["identical"] = comparison.widened(far["identical"], further)
        rows[name] = {**own, "figures": figures, "concepts": own.get("by_concept", {})}
    return rows


def _table(results: Mapping[str, Any]) -> list[str]:
    """Return the comparison, its attacks, costs and pictures."""
    rows = numbered(results)
    concepts = results["table"][BASELINE]["concepts"]
    lines = [
        "## All methods",
        f"On {', '.join(concepts)}, of Canvas's {len(STANDARD)} standard concepts;",
        f"{COMPARING['prompts']} prompts a family.",
        "Per cent, except the Fréchet distance in the judge's features. IRA and CRA are ratios to none's. Each cell",
        "has its 95 % interval, from a bootstrap over concepts (Wilson's over all pictures if the concepts agree), and",
        "its number of pictures.",
        *_distances(results),
        f"{'; '.join(results['by']['table'])}; {'; '.join(results['table'][BASELINE]['drawn_with'])}.",
        "",
        "| | kind | UA | IRA | CRA | mixed | Fréchet | identical |",
        "|---" * 8 + "|",
    ]
    for name, own in rows.items():
        cells = [comparison.cell(own, key) for key in ("ua", "ira_ratio", "cra_ratio", "mixed")]
        cells += [plain(results["distances"].get(name, {}).get("frechet")), comparison.cell(own, "identical")]
        refused = f" ({len(own['refused'])} refused)" if own["refused"] else ""
        lines.append(f"| {name}{refused} | {METHODS[name].kind} | {' | '.join(cells)} |")
    lines += comparison.verdict(rows, MAIN, MAIN)
    paired = {name: own for name, own in rows.items() if own["concepts"]}
    lines += ["", *(comparison.differences(paired, MAIN, MAIN) or NO_PAIRS)]
    lines += ["", "![What is erased against what is kept](peers-front.png)", "", *_authors(results)]
    lines += ["### What is left when the target is gone", *_left(rows), "", *_attacks(rows, len(concepts))]
    if results["costs"]:
        lines += ["", *_costs(results)]
    prompts = "; ".join(f"“{case.prompt}” without {case.concept}" for case in shown())
    lines += ["", "### Pictures", f"Each column has one prompt and seed: {prompts}.", "", "| | |", "|---|---|"]
    lines += [f"| {name} | ![{name}](peers/{name}.png) |" for name in rows]
    return lines


NO_PAIRS = [
    "The values of single concepts were not kept, so these differences cannot be tested in pairs; the next run keeps",
    "them. [frozen.md](frozen.md) pairs those of the best peers.",
]


def _authors(results: Mapping[str, Any]) -> list[str]:
    """Return the comparison of chosen settings with the papers', and its paired tests."""
    rows = results.get("authors", {})
    if len(rows) < 2:
        return []
    heads = {**MAIN, "ira": "IRA", "cra": "CRA"}
    names = {name: row for name in results["tuning"] for row in rows if row.partition(":")[0] == name}
    chosen = {name: best(results["tuning"][name]) for name in results["tuning"]}
    other = [name for name in GRIDS if name not in names and of_paper(name, chosen.get(name, ""))]
    equal = [name for name in GRIDS if name in names and not of_paper(name, chosen[name])]
    lines = [
        "### The papers' own settings",
        "The chosen settings against those of the method's paper or its authors' code (`--preset paper`), both on the",
        f"same concepts, prompts and seeds; {AUTHORS['prompts']} prompts a family, no attacks.",
        f"Equal to the paper's are the chosen settings of {', '.join(equal)}. Not run, because",
        f"they train or fit for minutes a concept: {', '.join(other)}.",
        f"{'; '.join(results['by']['authors'])}.",
        "",
        *comparison.table(rows, MAIN),
    ]
    lines += comparison.verdict(rows, MAIN, MAIN)
    lines += ["", *comparison.differences(rows, ("ua", "ira", "cra", "mixed", "identical"), heads), ""]
    return lines


def _attacks(rows: Mapping[str, Mapping[str, Any]], concepts: int) -> list[str]:
    """Return how often the target is still generated, by attack. White-box attacks on too few prompts are left out."""
    found = sorted({key for own in rows.values() for key in own["figures"] if key.startswith("asr.")})
    few = [
        key
        for key in found
        if key[4:] in SEARCHED and rows[BASELINE]["figures"].get(key, {}).get("pictures", 0) < LEAST
    ]
    families = [key for key in found if key not in few]
    prompts = max((rows[BASELINE]["figures"][key].get("pictures", 0) for key in few), default=0)
    inversion = COMPARING["inversion"]
    lines = [
        "### Attacks",
        "Share of prompts that still generate the target, of those from which the unerased model generates it, with",
        "the 95 % interval and the number of prompts (for attacks that search, at most). A head says on how many",
        "concepts the unerased model generates the target often enough to test. Inversion searches",
        f"{inversion['iterations']} iterations with {inversion['batch']} noised pictures, as on",
        "[frozen.md](frozen.md); [canvas.md](canvas.md) uses Canvas's default, 150 with 8.",
    ]
    if few:
        lines += [
            f"{' and '.join(key[4:] for key in few)} were run on {prompts} prompts, too few for a figure: see",
            "[frozen.md](frozen.md), which has two of each a concept.",
        ]
    tested = {key: rows[BASELINE]["figures"].get(key, {}).get("n", 0) for key in families}
    heads = {key: f"{key[4:]} ({n} of {concepts} concepts)" for key, n in tested.items()}
    lines += ["", *comparison.table(rows, heads)]
    return [*lines, *comparison.verdict(rows, families, MAIN)]


def _left(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what erased pictures show and how much of the rest is unchanged, if the runs counted it."""
    if not any(name in own["figures"] for own in rows.values() for name in LEFT):
        return [
            "Not counted, because it needs the pictures, and those of these runs were not kept. [canvas.md](canvas.md)",
            "has the figures of the default method. The next full run will have those of all methods.",
        ]
    moved = {name: head for name, head in MOVED.items() if name != "outside"}
    known = {name: head for name, (_, head, _) in LEFT.items()} | moved
    heads = {name: head for name, head in known.items() if any(name in own["figures"] for own in rows.values())}
    return [
        "For prompts that name the target and whose picture is without it: share that shows another known object, an",
        "empty scene, or something that neither judge recognises. Then how much of the rest is unchanged.",
        "",
        *comparison.table(rows, heads),
    ]


def _distances(results: Mapping[str, Any]) -> list[str]:
    """Return the note on the Fréchet distances."""
    if not results["distances"]:
        return []
    floor = results["distances"][BASELINE]["frechet_floor"]
    return [
        f"The distance is over {floor['n']} pictures that are unrelated to the concept, and the identical share over",
        f"those of them that show another object, from a separate run with {FURTHER['prompts']} prompts a family. The",
        f"unerased model's pictures from other seeds are at distance {plain(floor)}.",
        f"{'; '.join(results['by']['distances'])}. Everything else:",
    ]


def _costs(results: Mapping[str, Any]) -> list[str]:
    """Return what each method costs, and who costs least."""
    lines = [
        "### Costs",
        f"Of erasing {', '.join(COSTED_ON)} in a process that runs alone, once. {'; '.join(results['by']['costs'])}.",
        "",
        f"| | {' | '.join(COSTS.values())} |",
        "|---" * 5 + "|",
    ]
    known = {name: results["costs"][name] for name in GRIDS if name in results["costs"]}
    for name, cost in known.items():
        cells = [f"{cost['erase_seconds'] or 0:.1f}", f"{cost['added_seconds'] or 0:+.2f}"]
        cells += [f"{(cost['bytes'] or 0) / 1e3:.0f}", f"{(cost['peak_memory'] or 0) / 1e6:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    rows = {
        name: {"figures": {f"cost.{key}": {"value": cost[key]} for key in COSTS if cost[key]}}
        for name, cost in known.items()
    }
    heads = {f"cost.{key}": head for key, head in COSTS.items()}
    return [*lines, *comparison.verdict(rows, heads, heads)]


def kept(figures: Mapping[str, Any]) -> float:
    """Return the mean of IRA and CRA as ratios to the unerased model's."""
    return statistics.fmean(figures[key]["value"] for key in ("ira_ratio", "cra_ratio"))
