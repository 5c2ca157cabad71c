"""200 erased pictures of the frozen test set, for a look by eye at what the judges say of them.

    python benchmarks/figures/by_eye.py --run build/frozen      # choose the pictures, write the sheets to look at
    python benchmarks/figures/by_eye.py                         # render the page from the verdicts

The first command writes docs/results/by_eye.json, with `eye` empty, and one sheet for each 40 pictures. Whoever looks
fills in `eye`: `gone`, `half` (a part of the concept, or something that could pass for it), or `there`. The judges'
verdicts are not on the sheets.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from excise.app.bench.provenance import in_words, provenance
from excise.bench.items.cases import picture_of
from excise.bench.run import Run, Unit
from excise.files import write_atomic
from excise.statistics import in_percent, share

COMMAND = "python benchmarks/figures/by_eye.py --run build/frozen"
PICTURES, COLUMNS, ROWS, SCALE, HEAD = 200, 8, 5, 3, 14
SHOWS = ("direct", "paraphrase", "synonym", "mixed", "description", "weighted", "repetition", "distractor")
"""Families whose prompts ask for the concept."""
EYE = ("gone", "half", "there")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of the run of benchmarks/figures/frozen.py")
    parser.add_argument("--out", type=Path, default=Path("docs/results/by_eye.json"))
    options = parser.parse_args()
    if options.run is not None:
        rows = chosen(Run(options.run))
        results = {**provenance(COMMAND, ["snce"]), "by": "", "pictures": rows}
        write_atomic(options.out, json.dumps(results, indent=1) + "\n")
        for n in range(0, len(rows), COLUMNS * ROWS):
            path = options.out.with_name(f"by_eye-{n // (COLUMNS * ROWS) + 1}.png")
            sheet(Run(options.run), rows[n : n + COLUMNS * ROWS]).quantize(256).save(path, optimize=True)
    results = json.loads(options.out.read_text())
    write_atomic(options.out.with_suffix(".md"), page(results))
    print(page(results))


def chosen(run: Run) -> list[dict[str, Any]]:
    """Return SNCE's pictures to look at: as many of each concept, at random, where the unerased model generates it."""
    records = {(row["method"], row["case"]): row for row in run.records() if "seen" in row}
    concepts, rng, rows = run.plan["concepts"], random.Random(0), []
    for place, concept in enumerate(concepts):
        able = sorted(
            case
            for (method, case), row in records.items()
            if method == "snce" and row["concept"] == concept and case.split(".")[1] in SHOWS
            if row["seen"] and records["none", case]["seen"]["target"]
        )
        number = PICTURES * (place + 1) // len(concepts) - PICTURES * place // len(concepts)
        for case in sorted(rng.sample(able, min(number, len(able)))):
            seen = records["snce", case]["seen"]
            rows.append(
                {
                    "concept": concept,
                    "case": case,
                    "prompt": records["snce", case]["prompt"],
                    "judge": seen["target"],
                    "second": seen["second"]["target"],
                    "eye": "",
                }
            )
    return rows


def sheet(run: Run, rows: list[dict[str, Any]]) -> Image.Image:
    """Return the pictures enlarged, each with its number in the sheet and the concept that was erased."""
    side = 64 * SCALE
    made = Image.new("RGB", (COLUMNS * side, ROWS * (side + HEAD)), "white")
    pen = ImageDraw.Draw(made)
    for n, row in enumerate(rows):
        x, y = n % COLUMNS * side, n // COLUMNS * (side + HEAD)
        pen.text((x + 2, y), f"{n + 1} {row['concept']}", fill="black")
        with Image.open(picture_of(run, Unit("snce", row["concept"]), row["case"])) as picture:
            made.paste(picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (x, y + HEAD))
    return made


def page(results: Mapping[str, Any]) -> str:
    """Return the page: the eye's verdicts against the judges'."""
    rows = results["pictures"]
    looked = [row for row in rows if row["eye"]]
    lines = [
        "# Erased pictures, looked at",
        "",
        f"{in_words(results)}.",
        f"{len(rows)} pictures of prompts that ask for the concept and from which the unerased model generates it, by",
        "SNCE's defaults, from the run of [the frozen test set](frozen.md): as many of each concept, at random. They",
        "were looked at three times enlarged, without the judges' verdicts,",
        f"{results['by'] or 'not yet'}.",
        "`half` is a part of the concept, or something that could pass for it.",
        "",
    ]
    if not looked:
        return "\n".join([*lines, "Not looked at yet.", ""])
    lines += ["| by eye | pictures | first judge sees it | either judge sees it |", "|---|---|---|---|"]
    for word in EYE:
        some = [row for row in looked if row["eye"] == word]
        cells = [sum(row["judge"] for row in some), sum(row["judge"] or row["second"] for row in some)]
        lines.append(f"| {word} | {len(some)} | {' | '.join(map(str, cells))} |")
    missed = [not row["judge"] for row in looked if row["eye"] != "gone"]
    half = [not row["judge"] for row in looked if row["eye"] == "half"]
    wrong = [row["judge"] for row in looked if row["eye"] == "gone"]
    ua = {name: share([row[name] for row in looked]) for name in ("judge", "second")}
    strict = share([row["eye"] != "gone" for row in looked])
    by_concept = Counter(row["concept"] for row in looked if row["eye"] != "gone")
    lines += [
        "",
        f"The first judge misses {in_percent(share(missed).to_json())} of the {len(missed)} pictures that show the "
        f"concept or half of it by eye, and {in_percent(share(half).to_json())} of the {len(half)} halves.",
        f"It sees the concept in {in_percent(share(wrong).to_json())} of the {len(wrong)} pictures from which it is "
        "gone by eye.",
        f"Still shown: {in_percent(ua['judge'].to_json())} by the first judge, {in_percent(ua['second'].to_json())} by "
        f"the second, {in_percent(strict.to_json())} by eye with halves counted.",
        "Not gone by eye: " + (", ".join(f"{name} {n}" for name, n in by_concept.most_common()) or "none") + ".",
        "",
    ]
    sheets = -(-len(rows) // (COLUMNS * ROWS))
    for n in range(sheets):
        own = rows[n * COLUMNS * ROWS : (n + 1) * COLUMNS * ROWS]
        odd = [f"{i + 1} {row['eye']}" for i, row in enumerate(own) if row["eye"] not in ("", "gone")]
        lines += [f"![Pictures of sheet {n + 1}](by_eye-{n + 1}.png)", "", f"Not gone: {', '.join(odd) or 'none'}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
