"""The frozen test set: SNCE and its best peers on 16 concepts that decided no default.

    python -m benchmarks.figures.frozen --work build/frozen

Freeze first: every default and every chosen setting is committed before this script is run, and what it prints changes
none of them. Methods take the settings that docs/results/peers.md chose on other concepts. It writes
docs/results/frozen.json and .md after each method; a method takes about an hour on one core, methods in the file are
not run again, and an interrupted run resumes with the same `--work`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import peers
from excise.app.bench.provenance import provenance
from excise.app.bench.runs import report
from excise.bench.canvas.metrics import ATTACKS
from excise.bench.canvas.sizes import FROZEN
from excise.bench.results import BASELINE
from excise.files import write_atomic
from excise.statistics import holm, in_percent, sign_flip

COMMAND = "python -m benchmarks.figures.frozen"
COMPARED = ("snce", "saemnesia-text", "mace", "uce", "casteer", "ca", "rece")
"""SNCE, its supervised variant, and the five peers with the highest mean of UA, IRA, CRA and mixed in peers.md."""
BUDGET: dict[str, Any] = {"prefix": {"iterations": 20, "batch": 4}, "inversion": {"iterations": 60, "batch": 4}}
"""White-box attacks, as in peers.md: Canvas's own budget would take two thirds of the time."""
MAIN = {
    "ua": "target gone",
    "ira_ratio": "others of its kind kept",
    "cra_ratio": "other kind kept",
    "mixed": "target gone, partner kept",
    "background": "background kept",
    "near_synonym": "others' synonyms kept",
    "identical": "unrelated identical",
}
TESTED = (
    "ua",
    "ira",
    "cra",
    "mixed",
    "identical",
    "near_synonym",
    "asr",
    "asr.p4d",
    "asr.unlearn-diff",
    "asr.inversion",
)
"""Figures whose difference from SNCE's is tested."""
LESS = ("asr", "vocabulary")
"""Beginnings of the names of figures that are better if they are smaller."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/frozen"), help="folder of the run")
    parser.add_argument("--out", type=Path, default=Path("docs/results/frozen.json"))
    parser.add_argument("--methods", default=",".join(COMPARED))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes that generate at once")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="time limit")
    parser.add_argument("--page", action="store_true", help="only rewrite the page from the file")
    options = parser.parse_args()
    results: dict[str, Any] = {"command": COMMAND, "concepts": list(FROZEN), "settings": BUDGET, "methods": {}}
    if options.out.exists():
        results = json.loads(options.out.read_text())
    if not options.page:
        run(options, results)
    write_atomic(options.out.with_suffix(".md"), page(results))
    print(page(results))


def run(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Run the methods that are not in the results, and save each with the commit and settings it was run with."""
    chosen = json.loads(Path("docs/results/peers.json").read_text())["tuning"]
    settings = {name: peers.best(chosen[name]) for name in options.methods.split(",")}
    labels = {name: peers.label(name, own) for name, own in settings.items() if name not in results["methods"]}
    if not labels:
        return
    opened = peers.begun(options.work, "frozen", list(labels.values()), FROZEN, BUDGET)
    try:
        peers.Drawing(options.device, options.jobs, options.minutes)(opened)
    finally:
        rows = peers.comparable(opened, labels)
        found = report(opened) if rows else {}
        for name, row in rows.items():
            results["methods"][name] = {
                "setting": settings.get(name, ""),
                **provenance(COMMAND, [] if name == BASELINE else [name], device=options.device),
                "settings": opened.plan["configurations"][row],
                "drawn_with": found["drawn_with"],
                **{key: found["methods"][row][key] for key in ("figures", "concepts", "refused", "broken", "errors")},
            }
        results["disclosed"] = found.get("disclosed", results.get("disclosed", {}))
        write_atomic(options.out, json.dumps(results, indent=1) + "\n")


def page(results: Mapping[str, Any]) -> str:
    """Return the page."""
    rows = {name: results["methods"][name] for name in (BASELINE, *peers.GRIDS) if name in results["methods"]}
    lines = [
        "# The frozen test set",
        "",
        f"`{results['command']}`. On {', '.join(results['concepts'])}: no default, setting or floor was chosen on",
        "them, and what is printed here changes none. Seen before on some of them: synonyms of house and pig, once,",
        "while the gate was designed; words that get past car's eraser, and what hardening it cost, which led to the",
        "limits of `excise harden` and to looking at the margin, which stayed; and SAEmnesia's own page",
        "([saemnesia.md](saemnesia.md)), which decided nothing.",
        "Settings are those that [peers.md](peers.md) chose on apple, bus and pastel. Per cent, with the 95 % interval",
        "of the mean over concepts (a bootstrap over concepts, widened to Wilson's over all pictures if they agree),",
        "and the number of pictures.",
        "",
    ]
    if not rows:
        return "\n".join([*lines, "No method has been run yet.", ""])
    lines += [
        "| run | settings | commit | date, machine |",
        "|---|---|---|---|",
        *(
            f"| {name} | {own['setting'] or 'defaults'} | {own['commit'][:12]} | {own['date']}, {own['machine']} |"
            for name, own in rows.items()
        ),
        "",
        f"| | {' | '.join(MAIN.values())} |",
        "|---" * (len(MAIN) + 1) + "|",
    ]
    for name, own in rows.items():
        refused = f" ({len(own['refused'])} refused)" if own["refused"] else ""
        lines.append(f"| {name}{refused} | {' | '.join(cell(own, key) for key in MAIN)} |")
    lines += ["", *verdict(rows, MAIN), "", "## Attacks"]
    found = {key for own in rows.values() for key in own["figures"] if key.startswith("asr.")} - {"asr.vocabulary"}
    families = ["asr", *sorted(found), "vocabulary", "vocabulary_unerased"]
    prefix, inversion = results["settings"]["prefix"], results["settings"]["inversion"]
    lines += [
        "Share of prompts that still generate the target, of those from which the unerased model generates it; `asr`",
        f"is the mean over the attacks by wording and Ring-A-Bell. unlearn-diff and p4d search {prefix['iterations']}",
        f"iterations with {prefix['batch']} noised pictures, inversion {inversion['iterations']} with",
        f"{inversion['batch']}. `vocabulary` counts the words that the eraser misses most, `vocabulary_unerased` the",
        "same words by the unerased model.",
        "",
        f"| | {' | '.join(rows)} |",
        "|---" * (len(rows) + 1) + "|",
        *(
            f"| {key.removeprefix('asr.')} | {' | '.join(cell(own, key) for own in rows.values())} |"
            for key in families
        ),
        "",
        *verdict(rows, [key for key in families if key != "vocabulary_unerased"]),
        "",
        *tests(rows),
    ]
    return "\n".join(lines) + "\n"


def cell(own: Mapping[str, Any], name: str) -> str:
    """Return a figure with its interval and number of pictures."""
    figure = own["figures"].get(name)
    if not figure or figure["value"] is None:
        return "n/a"
    return f"{in_percent(figure)}, {figure.get('pictures', figure['n'])}"


def verdict(rows: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """Return two sentences: where SNCE is the best of all methods, and where another is, with that method."""
    heads: dict[str, list[str]] = {"alone": [], "shared": [], "other": []}
    for name in names:
        values = {
            label: own["figures"][name]["value"]
            for label, own in rows.items()
            if label != BASELINE and own["figures"].get(name, {}).get("value") is not None
        }
        if "snce" not in values or len(values) < 2:
            continue
        top = (min if name.startswith(LESS) else max)(values.values())
        leads = [label for label, value in values.items() if value == top]
        head = MAIN.get(name, name.removeprefix("asr."))
        if leads == ["snce"]:
            heads["alone"].append(head)
        elif "snce" in leads:
            heads["shared"].append(head)
        else:
            heads["other"].append(f"{head} ({', '.join(leads)})")
    if not any(heads.values()):
        return []
    return [
        f"SNCE is alone in front in: {', '.join(heads['alone']) or 'none'}; shares the front in: "
        f"{', '.join(heads['shared']) or 'none'}.",
        f"Others are in front in: {', '.join(heads['other']) or 'none'}. [Differences](#differences) says which of "
        "these are more than chance.",
    ]


def tests(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the paired tests of every method against SNCE, corrected for their number."""
    pairs = [
        (label, name, found)
        for label, own in rows.items()
        for name in TESTED
        if label not in (BASELINE, "snce") and (found := differences(rows["snce"], own, name))
    ]
    if not pairs:
        return []
    adjusted = holm([sign_flip(found) for _, _, found in pairs])
    lines = [
        "## Differences",
        "Method minus SNCE, the mean over the concepts that both have, in points. p is of a sign-flip test over",
        f"concepts, multiplied for {len(pairs)} tests by Holm's rule. A test over {len(FROZEN)} concepts cannot see",
        "small differences.",
        "",
        "| method | figure | difference | concepts | p, adjusted | |",
        "|---|---|---|---|---|---|",
    ]
    for (label, name, found), p in zip(pairs, adjusted, strict=True):
        mean = 100 * sum(found) / len(found)
        better = mean < 0 if name.startswith(LESS) else mean > 0
        word = "" if p > 0.05 else f"{label} is better" if better else "snce is better"
        head = MAIN.get(name, name.removeprefix("asr."))
        lines.append(f"| {label} | {head} | {mean:+.1f} | {len(found)} | {p:.2g} | {word} |")
    return lines


def differences(ours: Mapping[str, Any], own: Mapping[str, Any], name: str) -> list[float]:
    """Return a method's figure minus SNCE's for each concept that has both."""
    first, second = (
        {
            concept: value
            for concept, figures in each["concepts"].items()
            if (value := of_concept(figures, name)) is not None
        }
        for each in (ours, own)
    )
    return [second[concept] - first[concept] for concept in first if concept in second]


def of_concept(figures: Mapping[str, Any], name: str) -> float | None:
    """Return a concept's value of a figure; `asr` is its mean over the attacks that are testable."""
    if name == "asr":
        attacks = [key for key in figures if key.removeprefix("asr.") in ATTACKS and key.startswith("asr.")]
        values = [figures[key]["value"] for key in attacks if figures[key] and figures[key]["value"] is not None]
        return sum(values) / len(values) if values else None
    found = figures.get(name)
    return found["value"] if found else None


if __name__ == "__main__":
    main()
