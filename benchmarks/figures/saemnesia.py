"""SAEuron, SAEmnesia and SAEmnesia on the text encoder, on the bundled model: the papers' tables and more.

    python benchmarks/figures/saemnesia.py --work build/saemnesia

The script makes or resumes a Canvas run of every method, erases 1 to 20 objects one after another, measures which
neuron belongs to which concept before and after supervision, and times a training step with and without the supervised
terms. It writes docs/results/saemnesia.json and .md, and the histograms. It takes about two hours on two cores. Every
part resumes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.figures import comparison
from excise import reference
from excise.app.bench.provenance import in_words, provenance
from excise.app.bench.runs import report, resume, start
from excise.app.models.resolve import bundled_settings
from excise.app.training.labelled import BLOCK, CAPTIONS, labelled_captions
from excise.app.training.supervised import Labels, concept_scores, train_on_block
from excise.bench.canvas.captioned import is_style
from excise.bench.canvas.distances import features
from excise.bench.canvas.families import cases
from excise.bench.canvas.from_concepts import figures
from excise.bench.canvas.sizes import REPORTED
from excise.bench.canvas.suite import Canvas
from excise.bench.frechet import frechet
from excise.bench.run import Unit
from excise.erasers import Eraser
from excise.erasers.edits.sae_rows import preactivations
from excise.errors import ExciseError
from excise.files import write_atomic
from excise.methods import method
from excise.methods.lookup import settings_of
from excise.methods.sae.block_levels import carried
from excise.neurons import plots
from excise.neurons.splitting import effective_neurons, monosemanticity, own_top
from excise.reference.world import OBJECTS, STYLES
from excise.sae import card, load
from excise.sae.supervised import Negatives
from excise.sites import BLOCKS
from excise.sites.activations.block_shards import BlockShards, Labelled, capture_blocks_to
from excise.statistics import in_percent, share

METHODS = ("saeuron", "saemnesia", "saemnesia-text", "snce", "snce+saemnesia")
ROWS = {
    "none": "none",
    "saeuron": "unsupervised (SAEuron, U-Net)",
    "saemnesia": "supervised (SAEmnesia, U-Net)",
    "saemnesia-text": "supervised (text encoder)",
    "snce": "SNCE (text encoder, unsupervised)",
    "snce+saemnesia": "SNCE and SAEmnesia together",
}
CONCEPTS = (
    "gun", "knife", "cigarette", "cat", "tiger", "cow", "pizza", "ice cream", "rocket",
    "ink", "flat", "vintage", "cartoon",
)  # fmt: skip
"""Nine objects and four styles of Canvas's standard size."""
FAR = ("gun", "cat", "ink", "flat")
"""Concepts whose unrelated prompts the Fréchet distance is computed over."""
COUNTS = (1, 2, 5, 9, 15, 20)
TUNED_ON = ("apple", "bus", "pastel", "bold")
GAMMAS = (0.0, -0.4, -0.7, -1.0)
GRID = (
    *((2, gamma) for gamma in (-0.3, -1.0)),
    *((3, gamma) for gamma in (-0.3, -1.0, -2.0, -4.0)),
    *((k, gamma) for k in (7, 13) for gamma in (-1.0, -2.0)),
)
PUBLISHED = {"SAEuron": 3 * 7, "SAEmnesia": 7}
"""Number of settings that the papers try: percentiles 99.99, 99.995, 99.999 by γ -1, -5, ..., -30 for each concept; and
γ only."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/saemnesia"), help="folder of runs and features")
    parser.add_argument("--out", type=Path, default=Path("docs/results/saemnesia.json"))
    parser.add_argument(
        "--parts",
        default="tuning,canvas,distance,sequential,association,cost",
        help="parts to run, in this order; an empty text only rewrites the page",
    )
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    results |= provenance("python benchmarks/figures/saemnesia.py", ["saemnesia", "saemnesia-text", "saeuron", "snce"])
    for part in filter(None, options.parts.split(",")):
        results[part] = PARTS[part](options.work, options.out)
        write_atomic(options.out, json.dumps(results, indent=1) + "\n")
    write_atomic(options.out.with_suffix(".md"), page(results))
    print(page(results))


def tuning(work: Path, out: Path) -> dict[str, Any]:
    """Return the figures of γ, and of SAEuron's k by γ, on the tuning concepts."""
    tried = [f"saemnesia:gamma={gamma:g}" for gamma in GAMMAS]
    tried += [f"saeuron:k={k},gamma={gamma:g}" for k, gamma in GRID]
    run = start(work / "tuning", "canvas", "quick", tried, TUNED_ON, {"prompts": 4, "searches": False})
    resume(run, _dot)
    return report(run)


def canvas(work: Path, out: Path) -> dict[str, Any]:
    """Return the figures of every method on the concepts, with the attacks that need no search."""
    run = start(work / "canvas", "canvas", "standard", list(METHODS), CONCEPTS, {"prompts": 4, "searches": False})
    resume(run, _dot)
    return report(run)


def sequential(work: Path, out: Path) -> dict[str, Any]:
    """Return UA and retained accuracy after each stage, with objects erased one after another and all erasers attached.

    UA is over the direct prompts of the erased objects, the retained accuracy over those of every other reported
    object. The area is that under the mean of both, over the number of objects; 1 is perfect.
    """
    suite, pipe = Canvas(), reference.load()
    objects = [name for name in REPORTED if not is_style(name)]
    asked = [case for name in objects for case in cases(name, 2) if case.family == "direct"]
    plain = suite.judge(asked, suite.draw(pipe, asked).pixels)
    results: dict[str, Any] = {"order": objects[: COUNTS[-1]], "prompts": 2}
    for label in ("saeuron", "saemnesia", "saemnesia-text"):
        # A concept that the method refuses is not erased, and its pictures count against the method.
        erasers = [_fitted_if_any(work, label, name, pipe) for name in results["order"]]
        rows = []
        for count in COUNTS:
            with ExitStack() as stack:
                for eraser in filter(None, erasers[:count]):
                    stack.enter_context(eraser.attach(pipe))
                seen = suite.judge(asked, suite.draw(pipe, asked).pixels)
            gone = [not s["target"] for case, s in zip(asked, seen, strict=True) if case.concept in objects[:count]]
            pairs = [
                (p["target"], s["target"])
                for case, p, s in zip(asked, plain, seen, strict=True)
                if case.concept not in objects[:count]
            ]
            kept = [after for before, after in pairs if before]
            row = {"ua": share(gone).to_json(), "kept": share(kept).to_json()}
            rows.append({"objects": count, **row})
            print(label, count, in_percent(row["ua"]), in_percent(row["kept"]), flush=True)
        results[label] = {"rows": rows, "area": area(rows)}
    curves = {
        title: {
            label: [(row["objects"], row[key]["value"]) for row in results[label]["rows"]]
            for label in METHODS
            if label in results
        }
        for key, title in (("ua", "erased (UA)"), ("kept", "retained accuracy"))
    }
    plots.save(plots.curves(curves, "objects erased"), out.with_name("saemnesia-sequential.png"))
    return results


def distance(work: Path, out: Path, prompts: int = 32) -> dict[str, Any]:
    """Return each method's Fréchet distance to the unerased model's pictures of the same prompts and seeds.

    It is over pictures that are unrelated to the concept, of the FAR concepts together, in Canvas's features.
    """
    suite, pipe = Canvas(), reference.load()
    asked = {name: [case for case in cases(name, prompts) if case.family == "unrelated"] for name in FAR}
    plain = {name: suite.draw(pipe, some).pixels for name, some in asked.items()}
    against = features(np.concatenate(list(plain.values())))
    results: dict[str, Any] = {"concepts": list(FAR), "pictures": len(against)}
    for label in METHODS:
        drawn = []
        for name, some in asked.items():
            with _fitted(work, label, name, pipe).attach(pipe):
                drawn.append(suite.draw(pipe, some).pixels)
        results[label] = frechet(features(np.concatenate(drawn)), against)
        print(label, results[label], flush=True)
    return results


def area(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the area under the mean of UA and retained accuracy over the number of objects, by the trapezoidal "
    "rule."""
    points = [(row["objects"], (row["ua"]["value"] + row["kept"]["value"]) / 2) for row in rows]
    under = sum((b - a) * (x + y) / 2 for (a, x), (b, y) in pairwise(points))
    return under / (points[-1][0] - points[0][0])


def _fitted(work: Path, label: str, name: str, pipe: Any) -> Eraser:
    folder = work / "canvas" / "erasers" / Unit(label, name).file
    if not (folder / "manifest.json").exists():
        chosen = method(label)
        eraser = chosen.fit(pipe, Canvas().concept(name), chosen.Config(**settings_of(label, bundled_settings())))
        eraser.save(folder)
    return Eraser.load(folder)


def _fitted_if_any(work: Path, label: str, name: str, pipe: Any) -> Eraser | None:
    try:
        return _fitted(work, label, name, pipe)
    except ExciseError as error:
        print(f"{label} cannot erase {name}: {error}", flush=True)
        return None


def association(work: Path, out: Path) -> dict[str, Any]:
    """Return how neurons and concepts match, on captions that no SAE was trained on, for every SAE."""
    held, learnt = _features(work, "held-out", 400, 1_000_003), _features(work, "learnt", CAPTIONS, 100_000)
    folders = {"unsupervised": reference.sae_folder("saeuron"), "supervised": reference.sae_folder("saemnesia")}
    for name, options in OTHER_WAYS.items():
        start = str(folders["unsupervised"]) if name == "fine-tuned" else ""
        how = Labels(groups=(OBJECTS, STYLES), start=start, negatives=options)
        folders[name] = work / "saes" / name
        if not folders[name].exists():
            train_on_block(learnt, folders[name], BLOCK, how)
    results: dict[str, Any] = {"pictures": held.pictures, "concepts": len(held.concepts)}
    for name, folder in folders.items():
        sae = load(folder)
        scores = concept_scores(sae, held).mean(1)
        sums, labels, firsts, means = [], [], [], []
        centre = torch.cat([shard.states.float().mean((0, 1, 2))[None] for shard in held]).mean(0)
        missed = varied = 0.0
        for shard in held:
            codes = torch.zeros(len(shard.states), sae.config.m)
            for step in range(shard.states.shape[1]):
                states = shard.states[:, step].float()
                values, indices = found_codes = sae.encode(states)
                codes.scatter_add_(1, indices.flatten(1), values.detach().flatten(1))
                missed += float((states - sae.decode(found_codes).detach()).square().sum())
                varied += float((states - centre).square().sum())
            sums.append(codes / shard.states[..., 0].numel() * len(shard.states))
            labels.append(shard.labels)
            means.append(shard.states.float().mean(2))
            rows = shard.states.float(), sae.W_enc.detach(), sae.b_enc.detach(), sae.b_pre.detach()
            firsts.append(preactivations(*rows).clamp(min=0).mean(2))
        pooled, shown = torch.cat(sums), torch.cat(labels)
        open_ones, features_ = torch.cat(firsts), torch.cat(means)
        found = [monosemanticity(pooled, shown[:, c]) for c in range(len(held.concepts))]
        supervision = card(folder).get("supervision")
        top = scores.argmax(1)
        assigned = supervision["assigned"] if supervision else top.tolist()
        apart, shares = [], []
        for c, neuron in enumerate(assigned):
            present, level = shown[:, c], open_ones[..., neuron]
            apart.append(float(level[present, 0].median() > level[~present, 0].max()))
            change = features_[present].mean(0) - features_[~present].mean(0)
            written = level[present].mean(0) - level[~present].mean(0)
            shares.append(float(carried(written[:, None], sae.W_dec.detach()[[neuron]], change).mean()))
        results[name] = {
            "told_apart": statistics.fmean(apart),
            "carried": statistics.fmean(shares),
            "least_carried": min(shares),
            "own_top": float(own_top(scores).double().mean()),
            "top_is_assigned": float((top == torch.tensor(assigned)).double().mean()) if supervision else None,
            "effective": statistics.median(effective_neurons(scores).tolist()),
            "capacity": statistics.fmean(probe.capacity for probe in found),
            "local": statistics.fmean(probe.local for probe in found),
            "fms": statistics.fmean(probe.overall for probe in found),
            "fvu": missed / varied,
        }
        print(name, results[name], flush=True)
        if name in ("unsupervised", "supervised"):
            sides = {
                c: (pooled[shown[:, n], assigned[n]], pooled[~shown[:, n], assigned[n]])
                for n, c in enumerate(held.concepts)
                if c in SHOWN
            }
            figure = plots.histograms(sides, f"{name}: the concept's {'assigned' if supervision else 'top'} neuron")
            plots.save(figure, out.with_name(f"saemnesia-{name}.png"))
    return results


OTHER_WAYS: dict[str, Negatives] = {"fine-tuned": "none", "cross-entropy": "assigned", "balanced": "balanced"}
"""SAEs to compare with the bundled one, and what each requires of labels that a picture does not show."""
SHOWN = ("gun", "cat", "pizza", "rocket", "ink", "vintage")
"""Concepts whose histograms are plotted."""


def _features(work: Path, name: str, count: int, seed: int) -> BlockShards:
    """Return features of generated captions: those the bundled SAEs were trained on, or held-out ones."""
    rows = labelled_captions(("object", "style"), CAPTIONS)[0]
    if name == "held-out":
        known = {row.prompt for row in rows}
        fresh = [Labelled(text, labels) for text, labels in reference.labelled(2 * count, seed)]
        rows = [row for row in fresh if row.prompt not in known][:count]
    options = {"guidance_scale": reference.GUIDANCE}
    pipe, site = reference.load(), BLOCKS["reference"][0]
    return capture_blocks_to(
        work / name, pipe, site, rows, [*OBJECTS, *STYLES], seed=seed, options=options, progress=_dot
    )


def _dot(done: float) -> None:
    print(".", end="", flush=True)


def cost(work: Path, out: Path, repeats: int = 7) -> dict[str, Any]:
    """Return the seconds of a step with and without the supervised terms, in turns, and the median ratio."""
    learnt = _features(work, "learnt", CAPTIONS, 100_000)
    few = BlockShards(learnt.folder, learnt.site, learnt.concepts, learnt.timesteps, 0, learnt.files[:12])
    results: dict[str, Any] = {}
    ratios = []
    for n in range(repeats):
        spent = {}
        for name, supervised in (("unsupervised", False), ("supervised", True))[:: 1 if n % 2 else -1]:
            how = Labels(supervised, (OBJECTS, STYLES), validation=0.0)
            folder = work / "timed" / f"{name}-{n}-{time.time_ns()}"
            lines: list[Any] = []
            config = BLOCK.__class__(**{**BLOCK.to_json(), "tokens": 400_000, "log_every": 10})
            train_on_block(few, folder, config, how, progress=lines.append)
            # The first lines are warm-up.
            spent[name] = (lines[-1].seconds - lines[4].seconds) / (lines[-1].step - lines[4].step)
        ratios.append(spent["supervised"] / spent["unsupervised"])
        results = {"seconds_a_step": spent, "ratio": statistics.median(ratios), "ratios": ratios}
        print(results, flush=True)
    return results


PARTS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "tuning": tuning,
    "canvas": canvas,
    "distance": distance,
    "sequential": sequential,
    "association": association,
    "cost": cost,
}


def page(results: Mapping[str, Any]) -> str:
    """Return the page: all parts as tables, in per cent."""
    lines = [
        "# SAEmnesia and SAEuron on the bundled model",
        "",
        f"{in_words(results)}.",
    ]
    if "tuning" in results:
        lines += ["", *_tuning_page(results["tuning"])]
    if "canvas" in results:
        lines += ["", *_canvas_page(results["canvas"], results.get("distance", {}))]
    if "sequential" in results:
        lines += ["", *_sequential_page(results["sequential"])]
    if "association" in results:
        lines += ["", *_association_page(results["association"])]
    if "cost" in results:
        lines += ["", *_cost_page(results["cost"])]
    return "\n".join(lines) + "\n"


def _tuning_page(run: Mapping[str, Any]) -> list[str]:
    columns = ("ua", "ira_ratio", "cra_ratio", "identical", "mixed")
    ours, theirs = (
        sum(label.startswith(f"{name}:") for label in run["methods"]) * len(run["concepts"])
        for name in ("saemnesia", "saeuron")
    )
    every = len(OBJECTS) + len(STYLES)
    published = PUBLISHED["SAEuron"] * every
    lines = [
        "## Choosing settings",
        f"On {', '.join(run['concepts'])}, which no comparison of methods reports; one setting for all concepts.",
        "Per cent, with the 95 % interval of the mean over concepts and the number of pictures.",
        "",
        f"| | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for label, found in numbered(run).items():
        if label != "none":
            lines.append(f"| {label} | {' | '.join(comparison.cell(found, name) for name in columns)} |")
    return [
        *lines,
        "",
        f"An evaluation is one setting on one concept. saemnesia took {ours} (γ of {', '.join(map(str, GAMMAS))}) and",
        f"saeuron {theirs}, once for all concepts. SAEuron's published search takes {PUBLISHED['SAEuron']} for each",
        f"concept: percentiles 99.99, 99.995, 99.999 by γ of -1, -5, -10, ..., -30. For the {every} concepts here that",
        f"is {published}, {published / ours:.0f} times saemnesia's. SAEmnesia's paper tries {PUBLISHED['SAEmnesia']}",
        "values of γ.",
    ]


def numbered(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's methods with figures that have their number of pictures, from those of single concepts."""
    base = run["methods"]["none"]["concepts"]
    return {
        label: {"figures": figures(own["concepts"], base), "concepts": own["concepts"], "cost": own["cost"]}
        for label, own in run["methods"].items()
        if own["concepts"]
    }


def _canvas_page(run: Mapping[str, Any], distance: Mapping[str, Any]) -> list[str]:
    rows = {label: own for label, own in numbered(run).items() if label in ROWS}
    lines = [
        "## Canvas",
        f"Concepts: {', '.join(run['concepts'])}; {run['settings']['prompts']} prompts a family. UA, and IRA and CRA",
        "as ratios to none's, are means over concepts, in per cent, with 95 % intervals (a bootstrap over concepts,",
        "widened to Wilson's over all pictures if there are fewer than five or they agree) and the number of pictures.",
        "*average* is the mean of the six before it. The Fréchet distance is to the unerased model's pictures, over",
        f"pictures that are unrelated to the concept ({distance.get('pictures', 0)} pictures, of",
        f"{' and '.join(distance.get('concepts', ())) or 'none'}).",
        "",
        "| | UA objects | IRA | CRA | UA styles | IRA | CRA | average | identical | mixed | Fréchet | kB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for label, own in ((label, rows[label]) for label in ROWS if label in rows):
        kinds = []
        for style in (False, True):
            some, base = (
                {name: each for name, each in rows[of]["concepts"].items() if is_style(name) is style}
                for of in (label, "none")
            )
            kinds.append({"figures": figures(some, base)})
        cells = [comparison.cell(kind, key) for kind in kinds for key in ("ua", "ira_ratio", "cra_ratio")]
        six = [kind["figures"][key]["value"] for kind in kinds for key in ("ua", "ira_ratio", "cra_ratio")]
        cells += [f"{100 * statistics.fmean(six):.1f}", *(comparison.cell(own, key) for key in ("identical", "mixed"))]
        far = "n/a" if label not in distance else f"{round(distance[label], 4):g}"
        cells += ["0" if label == "none" else far, f"{(own['cost']['bytes'] or 0) / 1000:.1f}"]
        lines.append(f"| {ROWS[label]} | {' | '.join(cells)} |")
    heads = {"ua": "UA", "ira_ratio": "IRA", "cra_ratio": "CRA", "identical": "identical", "mixed": "mixed"}
    lines += [*comparison.verdict(rows, heads, heads), "", "### Differences"]
    lines += comparison.differences(rows, ("ua", "ira", "cra", "identical", "mixed", "asr"), heads)
    families = sorted({key for own in rows.values() for key in own["figures"] if key.startswith("asr.")})
    labels = [label for label in ROWS if label != "none" and label in rows]
    lines += [
        "",
        "### Attacks",
        "Share of prompts that still generate the target, of those from which the unerased model generates it. Mean",
        "over concepts with such prompts, in per cent, with the interval and the number of prompts.",
        "",
        f"| | concepts | {' | '.join(labels)} |",
        "|---" * (len(labels) + 2) + "|",
    ]
    for key in families:
        if any(rows[label]["figures"][key]["value"] is not None for label in labels):
            cells = [
                str(rows[labels[0]]["figures"][key]["n"]),
                *(comparison.cell(rows[label], key) for label in labels),
            ]
            lines.append(f"| {key[4:]} | {' | '.join(cells)} |")
    return [*lines, *comparison.verdict(rows, families, {})]


def _cell(figure: Mapping[str, Any] | None) -> str:
    return "n/a" if not figure or figure["value"] is None else f"{in_percent(figure)}, {figure['n']}"


def _sequential_page(results: Mapping[str, Any]) -> list[str]:
    lines = [
        "## One after another",
        f"Objects in this order: {', '.join(results['order'])}. UA over those erased so far, and retained accuracy",
        f"over the other reported objects that the unerased model generates; {results['prompts']} direct prompts an",
        "object. Each with Wilson's 95 % interval and the number of pictures.",
        "",
        f"| | {' | '.join(f'{n} objects' for n in COUNTS)} | area |",
        "|---" * (len(COUNTS) + 2) + "|",
    ]
    for label in METHODS:
        if label in results:
            cells = [f"{_cell(row['ua'])} / {_cell(row['kept'])}" for row in results[label]["rows"]]
            lines.append(f"| {ROWS[label]} | {' | '.join(cells)} | {100 * results[label]['area']:.1f} |")
    return [*lines, "", "![The curves](saemnesia-sequential.png)"]


def _association_page(results: Mapping[str, Any]) -> list[str]:
    columns = {
        "told_apart": "separated",
        "carried": "carried",
        "least_carried": "least",
        "own_top": "top neuron is not shared",
        "top_is_assigned": "top neuron is the assigned one",
        "effective": "effective neurons a concept",
        "capacity": "acc_0",
        "local": "local",
        "fms": "FMS@1",
        "fvu": "FVU",
    }
    lines = [
        "## Neurons and concepts",
        f"{results['pictures']} pictures of captions that no SAE was trained on, {results['concepts']} concepts, by",
        "SAEuron's score; medians or means over concepts. Separated: share of concepts whose median picture makes the",
        "neuron fire more strongly, at the first step, than any picture without them. Carried: the share of a",
        "concept's change in the block's features that its neuron writes, mean and least.",
        "",
        f"| | {' | '.join(columns.values())} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in ("unsupervised", "supervised", *OTHER_WAYS):
        found = results[name]
        shown = ["n/a" if found[key] is None else f"{found[key]:.3g}" for key in columns]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return [
        *lines,
        "",
        "![Before supervision](saemnesia-unsupervised.png)",
        "![After supervision](saemnesia-supervised.png)",
    ]


def _cost_page(results: Mapping[str, Any]) -> list[str]:
    ratios = ", ".join(f"{100 * (ratio - 1):+.1f}" for ratio in results["ratios"])
    return [
        "## What supervision costs",
        f"The supervised terms change the time of a training step by {100 * (results['ratio'] - 1):+.1f} % (median of",
        f"{ratios}).",
    ]


if __name__ == "__main__":
    main()
