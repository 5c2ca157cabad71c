"""Floors of `verify`: how much honest erasers and erasers made bad on purpose remove of a concept's own difference.

    python benchmarks/figures/floors.py --work build/floors
    python benchmarks/figures/floors.py --work build/floors --part confirm

The script makes an eraser of each method for two tuning concepts, and bad ones from it:

- other: the other concept's eraser with this concept's name;
- faint: its strength times 0.002;
- turned: its tensors with the opposite sign;
- random: a random direction of the same length instead.

`verify`'s figures of each are measured, and the floors follow from the honest erasers of tuning concepts alone, by the
rule in `floors`. `--part confirm` measures a concept that nothing was tuned on, once, against the floors that
`excise/erasers/proof/removal.py` has. Trainings are short. What is measured already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import excise
from excise import reference
from excise.app.bench.provenance import NOT_RECORDED, in_words, provenance
from excise.erasers import Eraser
from excise.erasers.proof.removal import (
    NEURONS,
    OTHER_TEXT_EDITS,
    PREDICTIONS,
    WHOLE_DENOISER,
    Floor,
    can_measure_prediction,
    can_measure_text,
    removed_from_prediction,
    removed_from_text,
)
from excise.errors import ExciseError
from excise.files import write_atomic

COMMAND = "python benchmarks/figures/floors.py"
TUNED_ON = ("dog", "frog")
"""Tuning concepts (docs/how-to/bench.md). Both are animals, so that another concept's eraser is a hard case."""
CONFIRMED_ON = "tiger"
"""A concept that nothing was tuned on, an animal too."""
GROUPS = {"neurons": NEURONS, "text": OTHER_TEXT_EDITS, "prediction": PREDICTIONS, "whole denoiser": WHOLE_DENOISER}
FAINT = 0.002
AS_THEY_ARE = (
    *("snce", "saemnesia-text", "itd", "concept-steerers", "uce", "rece", "safree", "sld", "safety-filter"),
    *("mace", "casteer", "saeuron", "saemnesia", "ca", "sa"),
)
SHORT: dict[str, dict[str, Any]] = {
    **{method: {} for method in AS_THEY_ARE},
    "esd-x": {"iterations": 40, "lr": 5e-4},
    "advunlearn": {"iterations": 30, "lr": 4e-4},
    "spm": {"iterations": 40, "lr": 5e-3, "anchoring": 100},
    "dumo": {"iterations": 60, "lr": 3e-3, "keep": 0.1},
    "esd-u": {"iterations": 60, "lr": 1e-4},
}
"""Methods, with settings that differ from those of `excise.erase`: fewer steps at a higher rate."""
TENSORS = ("W_dec", "delta", "up", "vectors", "directions", "alpha", "states", "concept", "sentences")
"""Tensors of edits that carry the concept; an edit has one of them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/floors"), help="folder of the erasers")
    parser.add_argument("--out", type=Path, default=Path("docs/results/floors.json"))
    parser.add_argument(
        "--methods", default=",".join(SHORT), help="methods to try; an empty text only rewrites the page"
    )
    parser.add_argument("--part", choices=("tune", "confirm"), default="tune")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {"tune": [], "confirm": []}
    if options.out.exists():
        results |= json.loads(options.out.read_text())
    rows = results[options.part]
    measured = {(row["method"], row["kind"], row["concept"]) for row in rows}
    pipe = reference.load()
    pipe.set_progress_bar_config(disable=True)
    for method in filter(None, options.methods.split(",")):
        for concept, kind, eraser in tried(pipe, method, options.part, options.work):
            if (method, kind, concept) not in measured:
                rows += [{"method": method, "kind": kind, **row} for row in figures(pipe, eraser, concept)]
                results |= provenance(COMMAND, sorted(SHORT))
                write_atomic(options.out, json.dumps(results, indent=1) + "\n")
    write_atomic(options.out.with_suffix(".md"), page(results))
    print(page(results))


def tried(pipe: Any, method: str, part: str, work: Path) -> Iterator[tuple[str, str, Eraser]]:
    """Yield concepts, kinds and erasers of a method: honest ones, and bad ones under the name of their concept."""
    concepts = TUNED_ON if part == "tune" else (CONFIRMED_ON,)
    for concept in concepts:
        honest = made(pipe, method, concept, work)
        yield concept, "honest", honest
        yield from ((concept, kind, dud) for kind, dud in duds(honest))
        other = made(pipe, method, next(name for name in TUNED_ON if name != concept), work)
        yield concept, "other", other


def made(pipe: Any, method: str, concept: str, work: Path) -> Eraser:
    """Return the method's eraser of the concept, from the folder if it was made before."""
    folder = work / "erasers" / f"{method}-{concept}"
    if not (folder / "eraser.json").exists():
        excise.erase(pipe, concept, method, **SHORT[method]).save(folder)
    return Eraser.load(folder)


def duds(eraser: Eraser) -> Iterator[tuple[str, Eraser]]:
    """Yield bad erasers made from an honest one, with their kinds."""
    for kind in ("faint", "turned", "random"):
        edits = [_spoilt(edit, kind, seed) for seed, edit in enumerate(eraser.edits)]
        if all(edit is not None for edit in edits):
            yield kind, replace(eraser, edits=tuple(edits), canary_shift=0.0)


def _spoilt(edit: Any, kind: str, seed: int) -> Any:
    """Return a bad edit of this kind, or None if the edit has no such: a filter cannot be turned round, for example."""
    name = next(name for name in TENSORS if isinstance(getattr(edit, name, None), Tensor))
    tensor = getattr(edit, name)
    if name == "alpha":  # how much of a copy's changed weights takes part; those are spoilt
        return replace(edit, alpha=edit.alpha * (FAINT if kind == "faint" else 1))
    if kind == "random":
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
        new = noise * (tensor.float().norm() / noise.norm())
        return replace(edit, **{name: new.to(tensor.dtype)})
    if name in ("states", "concept", "sentences"):
        return None
    if name == "directions":
        return replace(edit, beta=edit.beta * (FAINT if kind == "faint" else -1))
    return replace(edit, **{name: tensor * (FAINT if kind == "faint" else -1)})


def figures(pipe: Any, eraser: Eraser, concept: str) -> list[dict[str, Any]]:
    """Return what the eraser removes of the concept, a row for each part of the pipeline that it edits."""
    try:
        attachment = eraser.attach(pipe, strict=False)
    except ExciseError as error:
        return [{"concept": concept, "refused": str(error)}]
    found = []
    with attachment:
        if can_measure_text(attachment):
            found.append(removed_from_text(attachment, concept, "object", (concept,)))
        if can_measure_prediction(attachment):
            found.append(removed_from_prediction(attachment, concept, "object", (concept,)))
    return [
        {
            "concept": concept,
            "group": next(name for name, floor in GROUPS.items() if floor == removal.floor),
            **{name: round(getattr(removal, name), 4) for name in Floor._fields},
            "others": [round(share, 4) for share in removal.others],
        }
        for removal in found
    ]


def floors(rows: Sequence[Mapping[str, Any]]) -> dict[str, Floor]:
    """Return for each group half of the least share, cosine and lead of honest erasers, to two digits.

    Both groups of denoiser edits share the first two. A lead below 0 sets no floor.
    """

    def half(name: str, *groups: str) -> float:
        honest = [row[name] for row in rows if row["kind"] == "honest" and row.get("group") in groups]
        return float(f"{min(honest) / 2:.2g}")

    pooled = dict.fromkeys(("prediction", "whole denoiser"), ("prediction", "whole denoiser"))
    found = {}
    for group in GROUPS:
        share, cosine = (half(name, *pooled.get(group, (group,))) for name in ("share", "cosine"))
        lead = half("lead", group)
        found[group] = Floor(share, cosine, lead if lead > 0 else None)
    return found


def reaches(row: Mapping[str, Any], floor: Floor) -> bool:
    """Whether a row's figures reach a floor."""
    asked = zip(Floor._fields, floor, strict=True)
    return all(row[name] >= least for name, least in asked if least is not None)


def drawn_by(results: Mapping[str, Any]) -> str:
    return in_words(results) if "commit" in results else f"`{COMMAND}` ({NOT_RECORDED})"


def page(results: Mapping[str, Any]) -> str:
    """Return the page: the floors, and every eraser's figures with whether it passes."""
    lines = [
        *("# Floors of verify", "", f"{drawn_by(results)}, then with `--part confirm`.", ""),
        f"Floors are half of the least value of honest erasers of {' and '.join(TUNED_ON)}; all edits of a denoiser",
        "have the same floors of share and cosine. Share, cosine and lead are explained in",
        "[what verify proves](../explanation/verify.md). An eraser passes if all three reach them.",
        f"{len(results['tune'] + results['confirm'])} erasers are measured; another call measures what is missing.",
        "",
        "| edits | share | cosine | lead | share in use | cosine in use | lead in use |",
        "|---|---|---|---|---|---|---|",
    ]
    for group, floor in floors(results["tune"]).items():
        cells = [" | ".join("not asked" if v is None else f"{v:g}" for v in of) for of in (floor, GROUPS[group])]
        lines.append(f"| {group} | {' | '.join(cells)} |")
    for part, title in (("tune", "Tuning concepts"), ("confirm", f"Confirmed once on {CONFIRMED_ON}")):
        if not results[part]:
            continue
        lines += ["", f"## {title}", "", "| method | eraser | concept | edits | share | cosine | lead | passes |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for row in results[part]:
            name = f"| {row['method']} | {row['kind']} | {row['concept']} |"
            if "group" in row:
                values = " | ".join(f"{row[figure]:.2f}" for figure in Floor._fields)
                lines.append(
                    f"{name} {row['group']} | {values} | {'yes' if reaches(row, GROUPS[row['group']]) else 'no'} |"
                )
            else:
                lines.append(f"{name} | | | | refused when attached |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
