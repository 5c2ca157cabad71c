"""The page of canvas.py: SNCE's default against its bars, what is left of the target, and the sweeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.figures import comparison, peers_plan
from excise.app.bench.provenance import in_words
from excise.bench.bars import CANVAS, MEANINGS
from excise.bench.canvas.families import FAMILIES
from excise.bench.canvas.from_concepts import figures
from excise.bench.canvas.metrics import WITH_TARGET
from excise.statistics import from_json as estimate
from excise.statistics import in_percent

COMMAND = "python -m benchmarks.figures.canvas"
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
    "asr": "target still generated, mean over attacks by wording and Ring-A-Bell",
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
FEWEST = 32
"""Least number of prompts of a white-box attack whose figure is shown."""
SWEPT = ("ua", "ira_ratio", "cra_ratio", "mixed", "identical", "background", "asr")
PAIRED = ("ua", "ira", "cra", "mixed", "identical", "background", "asr")
"""Figures of the sweep whose differences from the default are tested."""
SWEPT_PROMPTS = 3
SWEPT_CONCEPTS = ("gun", "cat", "pizza", "tree", "ink", "flat")


def page(results: Mapping[str, Any]) -> str:
    """Return the page: tables in per cent with 95 % intervals."""
    standard, sweep = results["standard"], results["sweep"]
    methods, counts = numbered(standard["methods"]), swept_counts(sweep)
    swept_rows = {
        label: {
            "figures": {
                name: comparison.widened(method["figures"][name], counts[name])
                if method["figures"][name]["value"] in (0.0, 1.0)
                else method["figures"][name]
                for name in SWEPT
            }
        }
        for label, method in sweep["methods"].items()
        if not method["missing"]
    }
    lines = [
        "# SNCE on Canvas",
        "",
        f"{in_words({**standard, **results}, COMMAND)};",
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
        *reached(methods),
        "",
        "| | none | snce | n |",
        "|---|---|---|---|",
        *(
            f"| {title} | {' | '.join(number(methods[label], name) for label in ('none', 'snce'))} "
            f"| {amount(methods, name)} |"
            for name, title in PLAIN.items()
        ),
        "",
        *costs(methods["snce"]["cost"]),
        "",
        "## Prompts that still generate the target",
        "Of the prompts from which the unerased model generates it, by kind of prompt. A concept counts if that model",
        "generates it from at least 30 % of the prompts; the others are listed as not testable. For inversion the",
        f"unerased model gets the plain prompt. {' and '.join(few(standard))} were run on one prompt a concept, too",
        "few for a figure: see [frozen.md](frozen.md), which has two of each a concept. There and on",
        "[peers.md](peers.md) inversion searches 60 iterations with 4 noised pictures, less than here.",
        "",
        "| prompts | unerased model generates it | still generated | concepts, prompts | not testable |",
        "|---|---|---|---|---|",
        *(attack(standard, family) for family in attacked(standard) if family not in few(standard)),
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
        "codes of the concept's name, by position, from every prompt. In brackets: the number of prompts (for asr of",
        "concepts); of mixed and background, those whose partner or background the unerased model generates count.",
        "Where the concepts agree, the interval is Wilson's over that number.",
        "",
        f"| method | {' | '.join(f'{name} ({counts[name]})' for name in SWEPT)} |",
        "|---" * (len(SWEPT) + 1) + "|",
        *(
            f"| {label} | {' | '.join(in_percent(figure) for figure in method['figures'].values())} |"
            for label, method in swept_rows.items()
        ),
        *comparison.verdict(swept_rows, SWEPT, {}),
        "",
        *(comparison.differences(sweep["methods"], PAIRED, {}) or NO_PAIRS),
    ]
    unfinished = [label for label, method in sweep["methods"].items() if method["missing"]]
    if unfinished:
        lines += ["", f"Not complete yet: {', '.join(unfinished)}."]
    return "\n".join(lines) + "\n"


def row(methods: Mapping[str, Any], name: str, title: str) -> str:
    """Return the row of a figure: both methods, the number of concepts and pictures, its bar, and whether it is
    reached."""
    bar, (none, found) = CANVAS.get(name), (methods[label]["figures"].get(name) for label in ("none", "snce"))
    cells = ["n/a" if not figure or figure["value"] is None else in_percent(figure) for figure in (none, found)]
    cells.append("" if found["value"] is None else f"{found['n']}, {found['pictures']}")
    cells.append(f"{bar.limit} {100 * bar.bound:g}" if bar else "")
    cells.append((bar.standing(estimate(found)) or "") if bar else "")
    return f"| {title} | {' | '.join(cells)} |"


def reached(methods: Mapping[str, Any]) -> list[str]:
    """Return two sentences: which bars are reached, and which are not."""
    titles: dict[str | None, list[str]] = {"reached": [], "point only": [], "missed": []}
    for name, bar in CANVAS.items():
        kind = f"{name.removesuffix('_ratio').upper()} as a ratio" if name.endswith("_ratio") else ROWS[name]
        titles[bar.standing(estimate(methods["snce"]["figures"][name]))].append(kind)
    good, point, bad = ("; ".join(some) or "none" for some in titles.values())
    return [f"By its interval SNCE reaches: {good}.", f"By its value alone: {point}. It misses: {bad}."]


def numbered(methods: Mapping[str, Any]) -> dict[str, Any]:
    """Return the methods with the number of pictures of their shares, and Wilson's interval where all concepts agree.

    The file lacks the number, so shares are computed again from those of single concepts. Those of the second judge
    were not kept: an interval without width becomes Wilson's over as many pictures as concepts, the least possible.
    """
    found = {}
    for label, method in methods.items():
        own = method["figures"] | figures(method["concepts"], methods["none"]["concepts"])
        for name in (name for name in own if name.endswith("_second")):
            own[name] = comparison.widened(own[name], own[name]["n"]) | {"pictures": "not counted"}
        own["ua_second"]["pictures"] = own["ua"]["pictures"]
        found[label] = {**method, "figures": own}
    return found


NO_PAIRS = [
    "The values of single concepts were not kept, so the rows cannot be tested in pairs; the next run keeps them.",
    "`benchmarks/figures/ablations.py` tests changes of the default in pairs, on the frozen test set.",
]


def swept_counts(sweep: Mapping[str, Any]) -> dict[str, int]:
    """Return on how many prompts each figure of the sweep is, at most; of asr the number of concepts."""
    counts = peers_plan.asked(sweep["concepts"], SWEPT_PROMPTS)
    counts["background"] = sum(counts[f"asr.{family}"] for family in WITH_TARGET)
    return {name: counts.get(name.removesuffix("_ratio"), len(sweep["concepts"])) for name in SWEPT}


def amount(methods: Mapping[str, Any], name: str) -> str:
    """Return the number behind a figure that is not a share."""
    figure = next(methods[label]["figures"][name] for label in ("snce", "none") if methods[label]["figures"][name]["n"])
    return f"{figure['n']} {'pictures' if name.startswith('frechet') else 'concepts'}"


def attacked(standard: Mapping[str, Any]) -> list[str]:
    """Return the families of prompts that ask for the target."""
    return [family.name for family in FAMILIES if f"asr.{family.name}" in standard["methods"]["snce"]["figures"]]


def few(standard: Mapping[str, Any]) -> list[str]:
    """Return the white-box attacks on too few prompts for a figure."""
    white = {family.name for family in FAMILIES if family.role == "white-box"}
    return [name for name in attacked(standard) if name in white and prompts(standard, name) < FEWEST]


def prompts(standard: Mapping[str, Any], family: str) -> int:
    """Return how many prompts of a family count."""
    concepts = standard["methods"]["snce"]["concepts"].values()
    return sum(figures[f"asr.{family}"]["n"] for figures in concepts if figures.get(f"asr.{family}"))


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
    """Return the row of a family of prompts."""
    concepts = standard["methods"]["snce"]["concepts"]
    drawn = [figures[f"drawn.{family}"]["value"] for figures in concepts.values() if f"drawn.{family}" in figures]
    untested = [name for name, figures in concepts.items() if figures.get(f"asr.{family}", 0) is None]
    figure, n = standard["methods"]["snce"]["figures"][f"asr.{family}"], prompts(standard, family)
    shares = f"{100 * min(drawn):.0f} to {100 * max(drawn):.0f}" if drawn else "n/a"
    still = "n/a" if figure["value"] is None else in_percent(comparison.widened(figure, n))
    return f"| {family} | {shares} | {still} | {figure['n']}, {n} | {', '.join(untested)} |"
