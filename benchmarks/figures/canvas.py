"""SNCE on Canvas: a standard run with every attack, and sweeps over λ, k and both sources.

    python benchmarks/figures/canvas.py --work build/canvas

The script makes or resumes two runs in the working folder and writes docs/results/canvas.md and .json from them. The
first takes about an hour on two cores, the second about forty minutes. Both can be stopped at any time.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from excise import reference
from excise.app.bench.provenance import in_words, provenance
from excise.app.bench.runs import report, resume, start
from excise.bench.bars import CANVAS, MEANINGS
from excise.bench.canvas.families import FAMILIES
from excise.bench.canvas.metrics import ATTACKS
from excise.bench.canvas.suite import Canvas
from excise.files import write_atomic
from excise.reference.captions import caption
from excise.reference.world import BACKGROUNDS, OBJECTS, STYLES
from excise.statistics import Estimate, from_json, in_percent, share, wilson

ROWS = {
    "ua": "target gone, UA",
    "left_other": "of these: another known object (either judge)",
    "left_empty": "of these: an empty scene",
    "left_unrecognisable": "of these: neither an object that a judge knows nor empty",
    "background": "background kept, prompts with the target",
    "style": "style kept, prompts with the target",
    "ira": "other concepts of its domain right, IRA",
    "ira_ratio": "the same, as a ratio to none",
    "cra": "concepts of the other domain right, CRA",
    "cra_ratio": "the same, as a ratio to none",
    "identical": "unrelated pictures identical",
    "mixed": "mixed: target gone and partner kept",
    "near_miss": "near miss: object kept",
    "near_synonym": "near synonym of another object: object kept",
    "vocabulary": "words that the eraser misses most: target generated",
    "vocabulary_unerased": "the same words, unerased model",
    "asr": "target still generated, mean over attacks",
    "agreement": "pictures on which both judges agree",
    "ua_second": "UA by the second judge",
    "mixed_second": "mixed by the second judge",
    "asr_second": "attacks by the second judge",
}
PLAIN = {
    "frechet": "Fréchet distance to the unerased model's pictures",
    "frechet_floor": "its floor, to the same prompts from other seeds",
    "frechet_real": "Fréchet distance to real scenes",
    "pixel_error": "mean change of unrelated pictures, 0 to 1",
    "outside": "mean change outside the objects, prompts with the target",
    "alignment": "log-likelihood of what the prompt asks for, nats",
    "alignment_change": "its change",
}
SWEPT = ("ua", "ira_ratio", "cra_ratio", "mixed", "identical", "background", "asr")
LAMBDAS = (0.4, 0.8, 2.0, 4.0)
SWEPT_CONCEPTS = ("gun", "cat", "pizza", "tree", "ink", "flat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/canvas"), help="folder of the two runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results/canvas.json"))
    parser.add_argument("--page", action="store_true", help="only rewrite the page from the file")
    options = parser.parse_args()
    if options.page:
        write_atomic(options.out.with_suffix(".md"), page(json.loads(options.out.read_text())))
        return
    runs = {
        "standard": start(options.work / "standard", "canvas", "standard", ["snce"]),
        "sweep": start(
            options.work / "sweep", "canvas", "standard", swept(), SWEPT_CONCEPTS, {"prompts": 3, "searches": False}
        ),
    }
    results = provenance("python benchmarks/figures/canvas.py", ["snce"])
    for name, run in runs.items():
        resume(run, lambda done: print(".", end="", flush=True))
        results[name] = report(run)
    results["unasked"] = unasked()
    write_atomic(options.out, json.dumps(slim(results), indent=1) + "\n")
    write_atomic(options.out.with_suffix(".md"), page(results))
    print(page(results))


def swept() -> list[str]:
    """Return the methods of the sweep: λ for both sources, k at each source's λ, and λ in codes at the old default."""
    ours = ["snce", *(f"snce:lam={lam:g}" for lam in LAMBDAS), "snce:k=10", "snce:k=20", "snce:lam=1.75,unit=code"]
    paper = [f"snce:lam={lam:g},source=concept" for lam in LAMBDAS]
    return [*ours, *paper, "snce:k=10,lam=0.8,source=concept"]


def slim(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results without the sweep's figures of single concepts."""
    sweep = {label: {**method, "concepts": {}} for label, method in results["sweep"]["methods"].items()}
    return {
        **results,
        "standard": results["standard"],
        "sweep": {**results["sweep"], "methods": sweep},
        "unasked": results["unasked"],
    }


def unasked(n: int = 160) -> dict[str, dict[str, Any]]:
    """Return how often the unerased model generates each style if the prompt names no style."""
    rng = random.Random("unasked styles")
    prompts = [caption(rng, (rng.choice(OBJECTS),), None, rng.choice(BACKGROUNDS)) for _ in range(n)]
    drawn = reference.generate(reference.load(), prompts, list(range(n)), steps=Canvas().steps, batch_size=Canvas.batch)
    seen = reference.judge()(drawn).style
    return {style: share([int(s) == k for s in seen]).to_json() for k, style in enumerate(STYLES)}


def page(results: Mapping[str, Any]) -> str:
    """Return the page: tables in per cent with 95 % intervals."""
    standard, sweep = results["standard"], results["sweep"]
    methods = standard["methods"]
    lines = [
        "# SNCE on Canvas",
        "",
        f"{in_words({**standard, **results}, 'python benchmarks/figures/canvas.py')};",
        f"{standard['drawn_with'][0]}. Means over {len(standard['concepts'])} concepts",
        f"({', '.join(standard['concepts'])}), {methods['snce']['pictures']} pictures a method. The 95 % intervals are",
        "from a bootstrap that resamples concepts, or Wilson's in the first table if all concepts agree. Figures are",
        "in per cent unless another unit is given. All concepts use one configuration.",
        *results.get("notes", ()),
        "",
        *(f"- {name}: {text}" for name, text in standard["disclosed"].items()),
        "",
        "## The default",
        f"Reached: {MEANINGS['reached']}. Point only: {MEANINGS['point only']}.",
        "",
        "| | none | snce | concepts, pictures | bar | |",
        "|---|---|---|---|---|---|",
        *(row(methods, name, title) for name, title in ROWS.items() if name in methods["snce"]["figures"]),
        "",
        "| | none | snce |",
        "|---|---|---|",
        *(
            f"| {title} | {' | '.join(number(methods[label], name) for label in ('none', 'snce'))} |"
            for name, title in PLAIN.items()
        ),
        "",
        *costs(methods["snce"]["cost"]),
        "",
        "## Prompts that still generate the target",
        "Of the prompts from which the unerased model generates it, by kind of prompt. A concept counts if that model",
        "generates it from at least 30 % of the prompts; the others are listed as not testable. In the last three rows",
        "the unerased model gets the plain prompt.",
        "",
        "| prompts | unerased model generates it | still generated | concepts | not testable |",
        "|---|---|---|---|---|",
        *(attack(standard, family.name) for family in FAMILIES if f"asr.{family.name}" in methods["snce"]["figures"]),
        "",
        "### Styles without being asked",
        "If a prompt names no style, or names it in words that the model does not know (misspelt, foreign), the model",
        "still picks one. This explains part of what is left of a style under such an attack. The unerased model, over "
        f"{next(iter(results['unasked'].values()))['n']} prompts without a style:",
        "",
        f"| {' | '.join(results['unasked'])} |",
        "|---" * len(results["unasked"]) + "|",
        f"| {' | '.join(in_percent(figure) for figure in results['unasked'].values())} |",
        "",
        "## Sweeps",
        f"On {', '.join(sweep['concepts'])}: three prompts a family and concept, no search,",
        f"{sweep['methods']['snce']['pictures']} pictures a row. source=concept is the paper's mode: it subtracts the",
        "codes of the concept's name, by position, from every prompt.",
        "",
        f"| method | {' | '.join(SWEPT)} |",
        "|---" * (len(SWEPT) + 1) + "|",
        *(
            f"| {label} | {' | '.join(cell(method, name) for name in SWEPT)} |"
            for label, method in sweep["methods"].items()
            if not method["missing"]
        ),
    ]
    unfinished = [label for label, method in sweep["methods"].items() if method["missing"]]
    if unfinished:
        lines += ["", f"Not complete yet: {', '.join(unfinished)}."]
    return "\n".join(lines) + "\n"


def row(methods: Mapping[str, Any], name: str, title: str) -> str:
    """Return the row of a figure: both methods, the number of concepts and pictures, its bar, and whether it is
    reached."""
    bar, found = CANVAS.get(name), whole(methods, "snce", name)
    cells = [
        "n/a" if figure is None else in_percent(figure.to_json())
        for figure in (whole(methods, label, name) for label in ("none", "snce"))
    ]
    cells.append("" if found is None else f"{found.n}, {found.pictures or 'n/a'}")
    cells.append(f"{bar.limit} {100 * bar.bound:g}" if bar else "")
    cells.append((bar.standing(found) or "") if bar and found else "")
    return f"| {title} | {' | '.join(cells)} |"


def whole(methods: Mapping[str, Any], label: str, name: str) -> Estimate | None:
    """Return a method's figure with its number of pictures, and with Wilson's interval if all concepts agree.

    Older files lack the number of pictures; it is summed from the figures of single concepts.
    """
    saved = methods[label]["figures"].get(name)
    if not saved or saved["value"] is None:
        return None
    figure = from_json(saved)
    if figure.pictures or name.endswith("_second"):
        return figure
    base = name.removesuffix("_ratio")
    single = [
        part
        for concept in methods[label]["concepts"].values()
        for key, part in concept.items()
        if part and part["n"] and (key == base or (name == "asr" and key.removeprefix("asr.") in ATTACKS))
    ]
    n = sum(part["n"] for part in single)
    if not n or figure.low < figure.high:
        return figure._replace(pictures=n)
    pooled = wilson(sum(round(part["value"] * part["n"]) for part in single), n)
    share = 1.0 if base == name else pooled.value  # a ratio of 1 everywhere: none's share is equal
    return figure._replace(low=pooled.low / share, high=pooled.high / share, pictures=n)


def cell(method: Mapping[str, Any], name: str) -> str:
    figure = method["figures"].get(name)
    if not figure or figure["value"] is None:
        return "n/a"
    return in_percent(figure)


def number(method: Mapping[str, Any], name: str) -> str:
    value = method["figures"][name]["value"]
    return "n/a" if value is None else f"{value:.4g}"


def costs(cost: Mapping[str, Any]) -> list[str]:
    return [
        f"Erasing took {cost['erase_seconds']:.1f} s (median). The eraser has {cost['bytes'] / 1000:.1f} kB and",
        f"changes the time of a picture by {1000 * cost['added_seconds']:+.0f} ms. The process's peak memory was "
        f"{cost['peak_memory'] / 1e9:.2f} GB.",
    ]


def attack(standard: Mapping[str, Any], family: str) -> str:
    concepts = standard["methods"]["snce"]["concepts"]
    drawn = [figures[f"drawn.{family}"]["value"] for figures in concepts.values() if f"drawn.{family}" in figures]
    untested = [name for name, figures in concepts.items() if figures.get(f"asr.{family}", 0) is None]
    figure = standard["methods"]["snce"]["figures"][f"asr.{family}"]
    shares = f"{100 * min(drawn):.0f} to {100 * max(drawn):.0f}" if drawn else "n/a"
    still = cell(standard["methods"]["snce"], f"asr.{family}")
    return f"| {family} | {shares} | {still} | {figure['n']} | {', '.join(untested)} |"


if __name__ == "__main__":
    main()
