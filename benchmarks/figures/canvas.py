"""SNCE on Canvas: the standard run with every attack, and sweeps over λ, k and both sources.

    python benchmarks/figures/canvas.py --work build/canvas

Makes (or goes on with) two runs below the working folder and writes docs/results/canvas.md and .json from them. The
first takes about an hour on two cores, the second about forty minutes; both may be stopped at any time.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from excise import reference
from excise.app.bench.runs import report, resume, start
from excise.bench.bars import CANVAS, MEANINGS
from excise.bench.canvas.families import FAMILIES
from excise.bench.canvas.metrics import ATTACKS
from excise.bench.canvas.suite import Canvas
from excise.bench.statistics import Estimate, from_json, in_percent, share, wilson
from excise.files import write_atomic
from excise.reference.captions import caption
from excise.reference.world import BACKGROUNDS, OBJECTS, STYLES

ROWS = {
    "ua": "target gone, UA",
    "left_other": "of these: another known object (either judge)",
    "left_empty": "of these: an empty scene",
    "left_unrecognisable": "of these: nothing that either judge knows, nor empty",
    "background": "background kept beside the target",
    "style": "style kept beside the target",
    "ira": "other concepts of its domain right, IRA",
    "ira_ratio": "the same, of none",
    "cra": "concepts of the other domain right, CRA",
    "cra_ratio": "the same, of none",
    "identical": "unrelated pictures identical",
    "mixed": "mixed: target gone and partner kept",
    "near_miss": "near miss: object kept",
    "asr": "still drawn, mean over attacks",
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
    "alignment": "log-likelihood of what was asked for, nats",
    "alignment_change": "its change",
}
SWEPT = ("ua", "ira_ratio", "cra_ratio", "mixed", "identical", "background", "asr")
LAMBDAS = (0.4, 0.8, 2.0, 4.0)
SWEPT_CONCEPTS = ("gun", "cat", "pizza", "tree", "ink", "flat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/canvas"), help="folder of the two runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results/canvas.json"))
    parser.add_argument("--page", action="store_true", help="write the page anew from the file, and draw nothing")
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
    told = {}
    for name, run in runs.items():
        resume(run, lambda done: print(".", end="", flush=True))
        told[name] = report(run)
    told["unasked"] = unasked()
    write_atomic(options.out, json.dumps(slim(told), indent=1) + "\n")
    write_atomic(options.out.with_suffix(".md"), page(told))
    print(page(told))


def swept() -> list[str]:
    """What the sweep compares: λ for both sources, k at each one's own λ, and λ in codes at the former default."""
    own = ["snce", *(f"snce:lam={lam:g}" for lam in LAMBDAS), "snce:k=10", "snce:k=20", "snce:lam=1.75,unit=code"]
    paper = [f"snce:lam={lam:g},source=concept" for lam in LAMBDAS]
    return [*own, *paper, "snce:k=10,lam=0.8,source=concept"]


def slim(told: Mapping[str, Any]) -> dict[str, Any]:
    """The results without the figures of single concepts in the sweep."""
    sweep = {label: {**method, "concepts": {}} for label, method in told["sweep"]["methods"].items()}
    return {"standard": told["standard"], "sweep": {**told["sweep"], "methods": sweep}, "unasked": told["unasked"]}


def unasked(n: int = 160) -> dict[str, dict[str, Any]]:
    """How often the unerased model draws each style where the prompt names none."""
    rng = random.Random("unasked styles")
    prompts = [caption(rng, (rng.choice(OBJECTS),), None, rng.choice(BACKGROUNDS)) for _ in range(n)]
    drawn = reference.generate(reference.load(), prompts, list(range(n)), steps=Canvas().steps, batch_size=Canvas.batch)
    seen = reference.judge()(drawn).style
    return {style: share([int(s) == k for s in seen]).to_json() for k, style in enumerate(STYLES)}


def page(told: Mapping[str, Any]) -> str:
    """The figures as tables, in per cent with their 95 % intervals."""
    standard, sweep = told["standard"], told["sweep"]
    methods = standard["methods"]
    lines = [
        "# SNCE on Canvas",
        "",
        f"`python benchmarks/figures/canvas.py`, {standard['date']}, {standard['machine']};",
        f"{standard['drawn_with'][0]}. Means over {len(standard['concepts'])} concepts",
        f"({', '.join(standard['concepts'])}), {methods['snce']['pictures']} pictures a method; 95 % intervals from a",
        "bootstrap that resamples concepts, and in the first table Wilson's where all concepts agree. Per cent, where",
        "nothing else is said. One configuration for all.",
        *told.get("notes", ()),
        "",
        *(f"- {name}: {text}" for name, text in standard["disclosed"].items()),
        "",
        "## The default",
        f"Reached: {MEANINGS['reached']}. Point only: {MEANINGS['point only']}.",
        "",
        "| | none | snce | concepts, pictures | bar | |",
        "|---|---|---|---|---|---|",
        *(row(methods, name, says) for name, says in ROWS.items()),
        "",
        "| | none | snce |",
        "|---|---|---|",
        *(
            f"| {says} | {' | '.join(number(methods[label], name) for label in ('none', 'snce'))} |"
            for name, says in PLAIN.items()
        ),
        "",
        *costs(methods["snce"]["cost"]),
        "",
        "## What still draws the target",
        "Of the prompts from which the unerased model draws it, by kind of prompt. A concept counts where that model",
        "draws it in at least 30 % of the prompts; the others are listed as not testable. In the last three rows the",
        "unerased model is asked the plain prompt.",
        "",
        "| prompts | unerased draws it | still drawn | concepts | not testable |",
        "|---|---|---|---|---|",
        *(attack(standard, family.name) for family in FAMILIES if family.role != "keep"),
        "",
        "### Styles that nobody asked for",
        "Where a prompt names no style, or in words that the model does not know (misspelt, foreign), it draws one all",
        "the same. What is left of a style under such an attack is partly that. The unerased model, of "
        f"{next(iter(told['unasked'].values()))['n']} prompts without a style:",
        "",
        f"| {' | '.join(told['unasked'])} |",
        "|---" * len(told["unasked"]) + "|",
        f"| {' | '.join(in_percent(figure) for figure in told['unasked'].values())} |",
        "",
        "## Sweeps",
        f"On {', '.join(sweep['concepts'])}: three prompts a family and concept, no search,",
        f"{sweep['methods']['snce']['pictures']} pictures a row.",
        "source=concept is the paper's mode: the codes of the concept's name, by position, for every prompt.",
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
        lines += ["", f"Not drawn to the end yet: {', '.join(unfinished)}."]
    return "\n".join(lines) + "\n"


def row(methods: Mapping[str, Any], name: str, says: str) -> str:
    """A figure of both methods, how much is behind it, and how it stands against its bar."""
    bar, own = CANVAS.get(name), whole(methods, "snce", name)
    cells = [
        "n/a" if figure is None else in_percent(figure.to_json())
        for figure in (whole(methods, label, name) for label in ("none", "snce"))
    ]
    cells.append("" if own is None else f"{own.n}, {own.pictures or 'n/a'}")
    cells.append(f"{bar.limit} {100 * bar.bound:g}" if bar else "")
    cells.append((bar.standing(own) or "") if bar and own else "")
    return f"| {says} | {' | '.join(cells)} |"


def whole(methods: Mapping[str, Any], label: str, name: str) -> Estimate | None:
    """A figure of a method with its pictures, and with Wilson's interval over them where all concepts agree.

    Files of before pictures were counted over concepts have both in the figures of single concepts.
    """
    told = methods[label]["figures"].get(name)
    if not told or told["value"] is None:
        return None
    figure = from_json(told)
    if figure.pictures or name.endswith("_second"):
        return figure
    base = name.removesuffix("_ratio")
    single = [
        one
        for concept in methods[label]["concepts"].values()
        for key, one in concept.items()
        if one and one["n"] and (key == base or (name == "asr" and key.removeprefix("asr.") in ATTACKS))
    ]
    n = sum(one["n"] for one in single)
    if not n or figure.low < figure.high:
        return figure._replace(pictures=n)
    pooled = wilson(sum(round(one["value"] * one["n"]) for one in single), n)
    share = 1.0 if base == name else pooled.value  # of a ratio of 1 everywhere, none's share is its own
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
        f"Erasing took {cost['erase_seconds']:.1f} s (median), the artefact has {cost['bytes'] / 1000:.1f} kB, a",
        f"picture takes {1000 * cost['added_seconds']:+.0f} ms, the process had {cost['peak_memory'] / 1e9:.2f} GB at",
        "its peak.",
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
