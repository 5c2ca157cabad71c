"""The page of benchmarks/figures/frozen.py: SNCE and its peers on the frozen test set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.figures import comparison
from excise.bench.canvas.from_concepts import figures
from excise.bench.canvas.metrics import ATTACKS
from excise.bench.canvas.sizes import FROZEN
from excise.bench.results import BASELINE

COMPARED = ("snce", "saemnesia-text", "mace", "uce", "casteer", "casteer-gated", "snce+casteer-gated", "ca", "rece")
"""SNCE, its supervised variant, the five peers with the highest mean of UA, IRA, CRA and mixed in peers.md, and CASteer
behind a gate, alone and joined with SNCE."""
INSTEAD = "snce:replace_with=nothing"
MAIN = {
    "ua": "target gone",
    "ira_ratio": "others of its kind kept",
    "cra_ratio": "other kind kept",
    "mixed": "target gone, partner kept",
    "background": "background kept",
    "near_synonym": "others' synonyms kept",
    "identical": "unrelated identical",
}
LEFT = {
    "left_other": "another known object",
    "left_empty": "an empty scene",
    "left_unrecognisable": "unrecognisable",
    "outside_kept": "outside the object kept",
}
"""Figures of the section on SNCE with nothing in the concept's place, with those in MAIN."""
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


def has(results: Mapping[str, Any], name: str, concept: str) -> bool:
    """Return whether a method has run on a concept."""
    own = results["methods"].get(name, {"concepts": (), "refused": ()})
    return concept in own["concepts"] or concept in own["refused"]


def page(results: Mapping[str, Any]) -> str:
    """Return the page: methods that have run on every concept, then all methods on the concepts that all have."""
    rows = {name: results["methods"][name] for name in (BASELINE, *COMPARED) if name in results["methods"]}
    single = dict(results.get("float32", {}))
    instead = {name: single[name] for name in (BASELINE, "snce", INSTEAD) if INSTEAD in single}
    single.pop(INSTEAD, None)
    lines = [
        "# The frozen test set",
        "",
        f"`{results['command']}`, on {', '.join(results['concepts'])}.",
        "No default, setting or floor was chosen on these concepts, and what is printed here changes none. Seen before",
        "on some of them: synonyms of house and pig, once, while the gate was designed; words that get past car's",
        "eraser, and what hardening it cost, which led to the limits of `excise harden` and to looking at the margin,",
        "which stayed; and SAEmnesia's own page ([saemnesia.md](saemnesia.md)), which decided nothing.",
        "Settings are those that [peers.md](peers.md) chose on apple, bus and pastel, or the defaults of methods that",
        "are not there. Per cent, with the 95 % interval of the mean over concepts (a bootstrap over concepts, widened",
        "to Wilson's over all pictures if they agree), and the number of pictures.",
        "",
    ]
    if not (rows or single):
        return "\n".join([*lines, "No method has been run yet.", ""])
    lines += [
        "| run | concepts | settings | commit | date, machine |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {', '.join(f'{len(some)} in {dtype}' for dtype, some in precisions(own).items())} "
            f"| {own['setting'] or 'defaults'} | {commits(own)} | {own['date']}, {own['machine']} |"
            for kind in ({**single, **instead}, rows)
            for name, own in kind.items()
        ),
        "",
    ]
    whole = finished(results, rows)
    if len(whole) < 2:
        whole = single
    if whole:
        lines += [f"## On all {len(results['concepts'])} concepts", drawn_in(whole)]
        lines += tables(whole, results["settings"], "#")
    shared = [concept for concept in results["concepts"] if all(has(results, name, concept) for name in rows)]
    if len(finished(results, rows)) < len(rows) and shared:
        lines += [
            "",
            f"## SNCE and its peers, on {len(shared)} of {len(results['concepts'])} concepts",
            "The methods are drawn a concept at a time, in an order fixed before.",
            drawn_in(restricted(rows, shared)),
            *tables(restricted(rows, shared), results["settings"], "#"),
        ]
    return "\n".join([*lines, *with_nothing(instead, results["settings"]), *in_both(rows, single)]) + "\n"


def finished(results: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of methods that have run on every concept."""
    return {name: own for name, own in rows.items() if all(has(results, name, one) for one in results["concepts"])}


def precisions(own: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the concepts of a method by the precision they were drawn in."""
    drawn: dict[str, list[str]] = {}
    for concept, dtype in own["precisions"].items():
        drawn.setdefault(dtype, []).append(concept)
    return drawn


def drawn_in(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the sentences on the precision of each concept, which is the same for every method."""
    return " ".join(f"In {dtype}: {', '.join(names)}." for dtype, names in precisions(rows[BASELINE]).items())


def commits(own: Mapping[str, Any]) -> str:
    """Return the commits that a method was run at, shortened."""
    every = dict.fromkeys(own.get("commits", {}).values()) or [own["commit"]]
    return ", ".join(one[:12] for one in every)


def restricted(rows: Mapping[str, Mapping[str, Any]], concepts: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the rows with their figures over these concepts only."""
    some = {
        name: {concept: own["concepts"][concept] for concept in concepts if concept in own["concepts"]}
        for name, own in rows.items()
    }
    return {
        name: {
            **own,
            "concepts": some[name],
            "precisions": {concept: own["precisions"][concept] for concept in concepts},
            "figures": figures(some[name], some[BASELINE]),
        }
        for name, own in rows.items()
    }


def with_nothing(rows: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    """Return the section on SNCE with nothing in the concept's place, on the concepts that it has run on."""
    if not rows:
        return []
    rows = restricted(rows, [concept for concept in FROZEN if concept in rows[INSTEAD]["concepts"]])
    return [
        "",
        "## With nothing in the concept's place",
        f"`--replace-with nothing`, and SNCE as it is by default. {drawn_in(rows)}",
        "What erased pictures show, of those in which the concept is gone:",
        "",
        *comparison.table(rows, LEFT),
        *tables(rows, settings, "#"),
    ]


def in_both(rows: Mapping[str, Mapping[str, Any]], single: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the section on the methods and concepts that were drawn in both precisions."""
    lines: list[str] = []
    for name in [name for name in single if name in rows]:
        concepts = [one for one in precisions(rows[name]).get("bfloat16", []) if one in single[name]["concepts"]]
        pair = {
            f"{name}, {dtype}": restricted({BASELINE: kind[BASELINE], name: kind[name]}, concepts)[name]
            for dtype, kind in (("float32", single), ("bfloat16", rows))
        }
        table = comparison.table(pair, MAIN | {"asr": "attacks by wording and Ring-A-Bell"})
        lines += ["", f"{name}, on {len(concepts)} concepts:", "", *table]
    return ["", "## Both precisions", "The same settings, prompts and seeds.", *lines] if lines else []


def tables(rows: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any], deeper: str = "") -> list[str]:
    """Return the table of what is kept, that of attacks, and the tests, each followed by what it says.

    `deeper` is put before the signs of its headings.
    """
    lines = ["", *comparison.table(rows, MAIN)]
    lines += [*comparison.verdict(rows, MAIN, MAIN), "", f"{deeper}## Attacks"]
    found = {key for own in rows.values() for key in own["figures"] if key.startswith("asr.")} - {"asr.vocabulary"}
    meant = [family for family in (key.removeprefix("asr.") for key in sorted(found)) if family in ATTACKS]
    keys = ["asr", *sorted(found), "vocabulary", "vocabulary_unerased"]
    prefix, inversion = settings["prefix"], settings["inversion"]
    differences = comparison.differences(rows, TESTED, MAIN)
    return [
        *lines,
        "Share of prompts that still generate the target, of those from which the unerased model generates it; `asr`",
        f"is the mean over {', '.join(meant)}. unlearn-diff and p4d",
        f"search {prefix['iterations']} iterations with {prefix['batch']} noised pictures, inversion",
        f"{inversion['iterations']} with {inversion['batch']}.",
        "`vocabulary` counts the words that the eraser misses most, `vocabulary_unerased` the",
        "same words by the unerased model. Only concepts count that the unerased model generates often enough;",
        "`concepts` says how many. Inversion learns one word a concept, and counts the pictures drawn with it.",
        "",
        f"| | concepts | {' | '.join(rows)} |",
        "|---" * (len(rows) + 2) + "|",
        *(
            f"| {key.removeprefix('asr.')} | {testable(rows, key)} "
            f"| {' | '.join(comparison.cell(own, key) for own in rows.values())} |"
            for key in keys
        ),
        *comparison.verdict(rows, [key for key in keys if key != "vocabulary_unerased"], MAIN),
        *(["", f"{deeper}## Differences", *differences] if differences else []),
    ]


def testable(rows: Mapping[str, Mapping[str, Any]], key: str) -> str:
    """Return on how many of the concepts an attack can be tested, of how many; empty for the mean over attacks."""
    if key == "asr" or BASELINE not in rows:
        return ""
    concepts = rows[BASELINE]["concepts"].values()
    return f"{sum(one.get(key) is not None for one in concepts)} of {len(concepts)}"
