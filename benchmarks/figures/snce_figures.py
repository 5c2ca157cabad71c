"""Figures of SNCE on the bundled model: four concepts, every mode, one configuration for all.

    python benchmarks/figures/snce_figures.py --n 200 --out docs/results/snce.json

    python benchmarks/figures/snce_figures.py --n 40 --concepts skull,apple,bicycle \
        --rows "lam=1.5;lam=2.5" --out tuning.json

Each row is one configuration of the eraser for all concepts. The JSON has every concept separately, and `pooled` over
the pictures of all concepts. The script also writes a page of tables (snce.md). An interrupted run resumes if the
number of images, the model, the SAE and the default configuration are unchanged, and otherwise starts again. `--keep
FOLDER` keeps the unerased pictures for a later run with other rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import comparison
from excise import reference
from excise.app.bench.provenance import in_words, provenance
from excise.app.demo.measure import Family, families, figures, further_figures, generate, judge
from excise.bench.pictures import Pictures
from excise.concepts import from_templates
from excise.erasers import SAEEdit, made_for
from excise.erasers.edits.sae_rows import sae_digest
from excise.errors import ExciseError
from excise.files import write_atomic
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.finding import find
from excise.methods.sae.snce import fit
from excise.sae import load
from excise.statistics import in_percent, wilson

CONCEPTS = ("gun", "knife", "cat", "rocket")
# The default until Canvas showed objects that it left in the picture; docs/results/canvas.md has the current one.
DEFAULT = SNCEConfig(lam=1.75, unit="code", margin=0.1)
# The paper's mode uses the paper's λ (its Table 1): with 1.2, tuned on horse and apple, it lost 8 in 10 unrelated
# objects.
ROWS: dict[str, dict[str, Any]] = {
    "default": {},
    "k=10": {"k": 10},
    "k=20": {"k": 20},
    "concept": {"source": "concept", "lam": 0.8},
    "concept, k=10": {"source": "concept", "lam": 0.8, "k": 10},
    "concept, k=20": {"source": "concept", "lam": 0.8, "k": 20},
    "concept, pooled": {"source": "concept", "lam": 0.8, "align": "pooled"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="images a family and concept")
    parser.add_argument("--concepts", default=",".join(CONCEPTS))
    parser.add_argument(
        "--rows", default="all", help="rows, separated by ';'; a row can also be settings, such as lam=1.5,k=2"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results/snce.json"))
    parser.add_argument("--keep", type=Path, help="folder for the unerased pictures")
    options = parser.parse_args()
    names = list(ROWS) if options.rows == "all" else options.rows.split(";")
    pipe, sae = reference.load(), load(reference.sae_folder())
    same = {"images_a_family": options.n, "made_for": made_for(pipe), "sae": sae_digest(sae), "config": asdict(DEFAULT)}
    same = json.loads(json.dumps(same))
    result = json.loads(options.out.read_text()) if options.out.exists() else {}
    if any(result.get(name) != value for name, value in same.items()):
        result = {**same, "rows": {}}
    result |= provenance(f"python benchmarks/figures/snce_figures.py --n {options.n}", ["snce"])
    for concept in options.concepts.split(","):
        missing = [name for name in names if concept not in result["rows"].get(name, {}).get("concepts", {})]
        if not missing:
            continue
        groups = families(concept, options.n)
        before = unerased(pipe, groups, f"{concept} {same}", options.keep)
        pairs = from_templates(concept, (concept,))
        config = replace(DEFAULT, sae=str(reference.sae_folder()), examine=20)
        found = find(pipe, sae, pairs, config)
        for name in missing:
            row = result["rows"].setdefault(name, {"concepts": {}})
            try:
                eraser = fit(pipe, pairs, replace(config, **settings(name)), sae=sae, found=found)
            except ExciseError as error:
                row["concepts"][concept] = {"refused": str(error)}
                save(options.out, result)
                continue
            with eraser.attach(pipe):
                after = generate(pipe, groups)
            outcomes = judge(concept, groups, before, after)
            measured = figures(outcomes) | further_figures(outcomes)
            (edit,) = eraser.edits
            assert isinstance(edit, SAEEdit)
            row["concepts"][concept] = {key: figure.to_json() for key, figure in measured.items()} | {
                "neurons": edit.indices.tolist(),
                "settings": {"site": edit.site.key, "lam": edit.lam, "source": edit.source, "gate": edit.gate},
            }
            row["pooled"] = pooled(row["concepts"])
            save(options.out, result)
            print(concept, name, {key: round(figure.value, 3) for key, figure in measured.items()}, flush=True)


def unerased(pipe: Any, groups: Sequence[Family], key: str, keep: Path | None) -> list[Pictures]:
    """Return the unerased model's pictures of the families, from the folder `keep` if it has them."""
    if keep is None:
        return generate(pipe, groups)
    file = keep / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    if file.exists():
        return list(np.load(file))
    pictures = generate(pipe, groups)
    keep.mkdir(parents=True, exist_ok=True)
    np.save(file, np.stack(pictures))
    return pictures


def save(out: Path, result: dict[str, Any]) -> None:
    """Write the JSON and the page of tables."""
    write_atomic(out, json.dumps(result, indent=1) + "\n")
    write_atomic(out.with_suffix(".md"), page(result))


def settings(name: str) -> dict[str, Any]:
    """Return what a row changes in the default configuration: a named row's settings, or those its name spells out."""
    if name in ROWS:
        return ROWS[name]
    given = dict(part.split("=") for part in name.split(","))
    return {name: type(getattr(DEFAULT, name))(value) for name, value in given.items()}


def pooled(by_concept: dict[str, Any]) -> dict[str, Any]:
    """Return the shares over the pictures of all concepts together; for `others_delta`, the mean of the differences."""
    concepts = [found for found in by_concept.values() if "refused" not in found]
    out = {}
    for name in [k for k, v in concepts[0].items() if isinstance(v, dict) and "n" in v]:
        cells = [c[name] for c in concepts if c[name]["value"] is not None]
        n = sum(c["n"] for c in cells)
        hits = sum(c["value"] * c["n"] for c in cells)
        if name == "others_delta":
            # Independent concepts: half widths add in squares, weighted by their share of the pictures.
            half = sum(((c["high"] - c["low"]) / 2 * c["n"] / n) ** 2 for c in cells) ** 0.5 if n else 1.0
            mean = hits / n if n else float("nan")
            out[name] = {"value": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4), "n": n}
        else:
            out[name] = wilson(round(hits), n).to_json()
    return out


COLUMNS = {
    "target_direct": "target, direct",
    "target_synonym": "target, synonym",
    "target_mixed": "target, mixed",
    "partner_kept": "partner kept",
    "others_delta": "others, change",
    "unrelated_identical": "unrelated identical",
    "background_kept": "background kept",
    "style_kept": "style kept",
}
LEFT = {
    "left_other": "gone: another object",
    "left_empty": "gone: an empty scene",
    "left_unrecognisable": "gone: nothing recognisable",
}
"""What pictures of direct prompts show instead of the target when it is gone (by either judge)."""
BEFORE = {
    "target_direct_before": "target, direct",
    "target_synonym_before": "target, synonym",
    "partner_before": "partner",
    "others_before": "others",
}


NOT_COUNTED = (
    "",
    "What erased pictures show instead of the target was not counted, because it needs the pictures, and those of this",
    "run were not kept. [canvas.md](canvas.md) has the figures of the default method. The next full run will have the",
    "columns for every row.",
)


def page(result: dict[str, Any]) -> str:
    """Return the page: the figures as tables, in per cent with 95 % intervals."""
    before: dict[str, Any] = {}
    for row in result["rows"].values():
        for concept, found in _erased(row).items():
            before.setdefault(concept, found)
    counted = all(name in found for row in result["rows"].values() for found in _erased(row).values() for name in LEFT)
    columns, default = COLUMNS | (LEFT if counted else {}), result["config"]
    lines = [
        "# SNCE on the bundled model",
        "",
        f"{in_words(result)};",
        f"{result['images_a_family']} images a family and concept. Per cent, with 95 % intervals (Wilson; for the",
        "change in others Newcombe, paired by seed) and the number of images. The target and the partner count if the",
        "unerased model generates them.",
        "",
        f"Row `default`, the same for every concept: k = {default['k']}, λ = {default['lam']} {default['unit']}s,",
        f"source = {default['source']}, gate = {default['gate']}, margin = {default['margin']}. It was the default on",
        "that day; [canvas.md](canvas.md) has the current one. Every other row changes only what its name says. source",
        "= concept is the paper's mode: it subtracts the codes of the concept's name, by position.",
        *(() if counted else NOT_COUNTED),
        "",
        "## Unerased",
        *table(BEFORE, before),
    ]
    for name, row in result["rows"].items():
        together = {"pooled": row["pooled"]} if "pooled" in row else {}
        lines += ["", f"## {title(name)}", *table(columns, row["concepts"] | together)]
    pooled = {name: {"figures": row["pooled"]} for name, row in result["rows"].items() if "pooled" in row}
    heads = {name: head for name, head in COLUMNS.items() if not name.endswith("_delta")}
    lines += ["", "## All rows, pooled", *comparison.verdict(pooled, heads, heads, "default")[1:]]
    return "\n".join(lines) + "\n"


def _erased(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's concepts without those that were refused."""
    return {concept: found for concept, found in row["concepts"].items() if "refused" not in found}


def title(name: str) -> str:
    """Return a row's settings spelled out, or its name if it has none."""
    return ", ".join(f"{key} = {value}" for key, value in settings(name).items()) or name


def table(columns: dict[str, str], rows: dict[str, Any]) -> list[str]:
    """Return a table with a row for each concept."""
    lines = [f"| | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for name, found in rows.items():
        cells = [found["refused"]] if "refused" in found else [number(found[c]) for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def number(figure: dict[str, Any]) -> str:
    """Return a figure with its interval and number of images."""
    return f"{in_percent(figure)}, {figure['n']}"


if __name__ == "__main__":
    main()
