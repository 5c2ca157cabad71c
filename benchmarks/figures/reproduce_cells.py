"""Twenty random cells of docs/results, computed again with today's code.

    python -m benchmarks.figures.reproduce_cells --list
    python -m benchmarks.figures.reproduce_cells --work build/reproduced

The cells are drawn by a seeded generator from the tables of docs/results. A cell that takes more than about three
minutes of one core is reproduced by a committed part of it: one of its concepts, a share of 0 or 100 % on fewer of
its prompts, or the images that are shown of it. A cell without such a part, a time or a peak of memory, and a cell
that needs weights that do not ship with Excise give way to the next one drawn, and the page says why.

`--only 3,4` computes some of the cells. What was computed is kept in the working folder, and
docs/results/reproduced.json and .md are written from it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.figures import canvas, canvas_page, choosing_saes, peers, saemnesia, several_concepts, snce_figures
from benchmarks.figures import peers_plan as plan
from excise import reference
from excise.app.bench.provenance import in_words, provenance
from excise.app.bench.runs import report, resume, start
from excise.app.demo.measure import Family, families, figures, further_figures, generate, judge
from excise.bench.canvas.families import UNTOUCHED
from excise.bench.canvas.metrics import ATTACKS, WITH_TARGET
from excise.bench.canvas.suite import Canvas
from excise.concepts import from_templates
from excise.files import write_atomic
from excise.methods import METHODS
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.snce import fit
from excise.statistics import in_percent, wilson

COMMAND = "python -m benchmarks.figures.reproduce_cells"
RESULTS = Path("docs/results")
DRAWN = {"peers": 6, "canvas": 4, "saemnesia": 3, "snce": 3, "choosing_saes": 2, "several_concepts": 2}
"""How many cells of each page. smollm2.md is left out: SmolLM2's weights do not ship with Excise."""
FEW = 24
"""Of a share of 0 or 100 % over 200 prompts, the outcome of every prompt is committed: so many are looked at."""
WRITTEN = ("misspelling", "language", "description", "weighted", "repetition", "distractor")
"""Attacks that need no search."""
NEEDED: dict[str, tuple[str, ...]] = {
    "ua": ("direct",),
    "mixed": ("mixed",),
    "near_miss": ("near-miss",),
    "identical": ("unrelated",),
    "ira": ("unrelated",),
    "cra": ("unrelated", "style", "direct"),
    "background": WITH_TARGET,
    "style": WITH_TARGET,
    "pixel_error": ("unrelated",),
    "outside": WITH_TARGET,
    "alignment": ("unrelated", "near-miss", "style"),
    "alignment_change": ("unrelated", "near-miss", "style"),
}
"""Families of Canvas that a figure is counted on."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    page: str
    table: str
    row: str
    column: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}.md, {self.table}: {self.row}, {self.column}"


@dataclass(frozen=True)
class Part:
    """What is computed of a cell: in words, its committed value, and the way to it."""

    what: str
    committed: Any
    compute: Callable[[Path], Any]


class TooLong(Exception):
    """Why a cell gives way to the next one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/reproduced"))
    parser.add_argument("--out", type=Path, default=RESULTS / "reproduced.json")
    parser.add_argument("--list", action="store_true", help="say which cells are drawn, and compute none")
    parser.add_argument("--only", default="", help="numbers of the cells to compute, with commas; by default all")
    options = parser.parse_args()
    chosen, skipped = draw()
    if options.list:
        for n, (cell, part) in enumerate(chosen, 1):
            print(f"{n}. {cell} = {cell.text}\n   {part.what}: {part.committed}")
        print(*(f"left out: {cell}: {why}" for cell, why in skipped), sep="\n")
        return
    kept = options.work / "cells.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    numbers = [int(n) for n in options.only.split(",") if n] or range(1, len(chosen) + 1)
    for n in numbers:
        cell, part = chosen[n - 1]
        if str(cell) in found:
            continue
        began = time.process_time()
        now = part.compute(options.work)
        equal = json.loads(json.dumps(now)) == json.loads(json.dumps(part.committed))
        found[str(cell)] = {"now": now, "equal": equal, "seconds": round(time.process_time() - began)}
        print(f"{n}. {cell}: committed {part.committed}, now {now}, {'equal' if equal else 'DIFFERENT'}", flush=True)
        write_atomic(kept, json.dumps(found, indent=1) + "\n")
    results = outcome(chosen, skipped, found)
    write_atomic(options.out, json.dumps(results, indent=1) + "\n")
    write_atomic(options.out.with_suffix(".md"), page(results))


def draw() -> tuple[list[tuple[Cell, Part]], list[tuple[Cell, str]]]:
    """Return the drawn cells with what is computed of them, and those left out with the reason."""
    chosen: list[tuple[Cell, Part]] = []
    skipped: list[tuple[Cell, str]] = []
    for name, count in DRAWN.items():
        every = list(cells(name))
        random.Random(f"{name}, reproduced").shuffle(every)
        results = json.loads((RESULTS / f"{name}.json").read_text())
        picked = 0
        for cell in every:
            if picked == count:
                break
            try:
                chosen.append((cell, PARTS[name](cell, results)))
                picked += 1
            except TooLong as why:
                skipped.append((cell, str(why)))
    return chosen, skipped


def cells(name: str) -> Iterator[Cell]:
    """Yield every cell with a figure in the tables of a page."""
    heading, head = "", None
    for line in (RESULTS / f"{name}.md").read_text().splitlines():
        if line.startswith("#"):
            heading, head = line.lstrip("# "), None
        elif not line.startswith("|"):
            head = None
        elif head is None:
            head = [re.sub(r" \(\d+\)$", "", cell.strip()) for cell in line.strip("|").split("|")]
        elif set(line) - set("|-"):
            row = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
            named = 2 if head[:2] == ["method", "settings"] else 1
            for column, text in zip(head[named:], row[named:], strict=True):
                if re.search(r"\d", text) and "![" not in text:
                    yield Cell(name, heading, " ".join(row[:named]), column, text)


def one_of(cell: Cell, concepts: Sequence[str]) -> str:
    """Return the concept that a cell is reproduced on, at random but always the same."""
    return random.Random(str(cell)).choice(list(concepts))


def whole(value: float | None) -> bool:
    """Whether a share leaves no doubt about any image behind it."""
    return value in (0.0, 1.0)


def share(figure: Mapping[str, Any] | None) -> Any:
    """Return a figure as `value of n`, which has to come out the same."""
    return None if figure is None else [figure["value"], figure["n"]]


def bench(work: Path, size: str, row: str, concepts: Sequence[str], **settings: Any) -> Any:
    """Return the report of a run of Canvas of one method, or of the unerased model alone."""
    key = f"{size} {row} {'-'.join(concepts)} {json.dumps(settings, sort_keys=True)}"
    folder = work / "runs" / re.sub(r"[^\w.-]+", "-", key)[:200]
    run = start(folder, "canvas", size, [] if row == "none" else [row], list(concepts), settings)
    resume(run)
    return report(run)["methods"][row]


def of_concept(cell: Cell, results: Mapping[str, Any], row: str, key: str, **settings: Any) -> Part:
    """Return the part of a cell that is one concept of its mean, as the json has it."""
    known = results["methods"][row]["concepts"]
    testable = [name for name, own in known.items() if own.get(key) is not None]
    if not testable:
        raise TooLong("no part of it is committed")
    concept = one_of(cell, testable)
    only = (key.partition(".")[2],) if "." in key else NEEDED[key]
    size = results["size"]

    def compute(work: Path) -> Any:
        made = bench(work, size, row, [concept], only=only, searches=False, **settings)
        return share(made["concepts"][concept][key])

    return Part(f"{key} on {concept}: share and prompts", share(known[concept][key]), compute)


def of_peers(cell: Cell, results: Mapping[str, Any]) -> Part:
    method, _, setting = cell.row.partition(" ")
    if cell.column in ("fit, s", "erase, s", "added a picture, s", "peak, MB"):
        raise TooLong("a time or a peak of memory")
    if cell.table == "Costs":
        raise TooLong("bytes of a record that has gained a verdict since")
    trained = method in METHODS and METHODS[method].kind == "fine-tune"
    if cell.table == "Choosing settings":
        setting = "" if setting == "defaults" else setting
        row, committed = plan.label(method, setting), results["tuning"][method][setting][cell.column]
        only = NEEDED[cell.column.removesuffix("_ratio")]
        concepts, what = list(plan.TUNED_ON), "whole cell"
        if trained:
            if not whole(committed) or cell.column.endswith("_ratio"):
                raise TooLong("trains for minutes on each of three concepts, and no part of it is committed")
            concepts = [one_of(cell, concepts)]
            what = f"every prompt of {concepts[0]}"
        shared = {**plan.TUNING, "only": only, "batch": 8}

        def tuned(work: Path) -> Any:
            return bench(work, "quick", row, concepts, **shared)["figures"][cell.column]["value"]

        return Part(what, committed, tuned)
    row = plan.label(method, results["table"][method]["setting"])
    key = {"UA": "ua", "IRA": "ira_ratio", "CRA": "cra_ratio"}.get(cell.column, cell.column)
    if key == "Fréchet" or (key == "identical" and not whole(results["distances"][method]["identical"]["value"])):
        raise TooLong("of 128 images twice, and no part of it is committed")
    concepts = list(results["table"][method]["concepts"])
    if key == "identical":
        name = one_of(cell, concepts)
        far = {**plan.FURTHER, "only": UNTOUCHED}

        def identical(work: Path) -> Any:
            return bench(work, "standard", row, [name], **far)["figures"]["identical"]["value"]

        return Part(f"every image of {name}", results["distances"][method]["identical"]["value"], identical)
    if cell.table == "Attacks":
        key = f"asr.{cell.column}"
        if cell.column not in (*WRITTEN, "direct", "paraphrase", "synonym", "mixed"):
            raise TooLong("the attack searches for its prompts")
    committed = results["table"][method]["figures"][key]["value"]
    only = (key[4:],) if key.startswith("asr.") else NEEDED[key.removesuffix("_ratio")]
    if whole(committed) and not key.endswith("_ratio"):
        name = one_of(cell, concepts)

        def one(work: Path) -> Any:
            made = bench(work, "standard", row, [name], prompts=4, searches=False, only=only, batch=4)
            return made["figures"][key]["value"]

        return Part(f"every prompt of {name}", committed, one)
    if trained or key == "cra_ratio":
        if cell.table == "Attacks":
            raise TooLong("trains for minutes on each of eight concepts, and no part of it is committed")
        name = one_of(cell, plan.SHOWN)
        return Part(f"its three images of {name} in the page's strip, bit by bit", True, lambda w: strip(w, row, name))

    def every(work: Path) -> Any:
        made = bench(work, "standard", row, concepts, prompts=4, searches=False, only=only, batch=4)
        return made["figures"][key]["value"]

    return Part("whole cell", committed, every)


def strip(work: Path, row: str, concept: str) -> Any:
    """Return whether a method's images of a concept are those of its committed strip, or how far off they are."""
    folder = work / "strips" / f"{row.partition(':')[0]}-{concept}"
    settings = {"prompts": 4, "searches": False, "only": plan.CASES}
    run = start(folder, "canvas", "standard", [row], [concept], settings)
    resume(run)
    now = np.asarray(peers.strip(run, row)).astype(int)
    with Image.open(RESULTS / "peers" / f"{row.partition(':')[0]}.png") as image:
        committed = np.asarray(image.convert("RGB")).astype(int)
    side, first = 64, len(plan.CASES) * plan.SHOWN.index(concept)
    tiles = slice(side * first, side * (first + len(plan.CASES)))
    off = int(np.abs(now[:, tiles] - committed[:, tiles]).max())
    return True if off == 0 else f"largest difference {off} of 255"


def of_canvas(cell: Cell, results: Mapping[str, Any]) -> Part:
    standard = results["standard"]
    if cell.table == "The default":
        if cell.column not in ("none", "snce"):
            raise TooLong("a count or a bar")
        keys = [key for key, says in {**canvas_page.ROWS, **canvas_page.PLAIN}.items() if says == cell.row]
        key = keys[0].removesuffix("_ratio")
        if cell.row == "the same, as a ratio to none":  # IRA's and CRA's have one name
            of_ira = canvas_page.numbered(standard["methods"])[cell.column]["figures"]["ira_ratio"]
            key = "ira" if in_percent(of_ira) == cell.text else "cra"
        if key == "asr":
            return attacked(cell, standard)
        if key not in NEEDED:
            raise TooLong("of 16 concepts, and no part of it is committed")
        return of_concept(cell, standard, cell.column, key, batch=8)
    if cell.table == "Prompts that still generate the target":
        if cell.column not in ("unerased model generates it", "still generated"):
            raise TooLong("a count")
        if cell.row not in (*WRITTEN, "direct", "paraphrase", "synonym", "mixed"):
            raise TooLong("the attack searches for its prompts")
        key = f"{'drawn' if cell.column == 'unerased draws it' else 'asr'}.{cell.row}"
        return of_concept(cell, standard, "snce", key, batch=8)
    if cell.table == "Styles without being asked":
        return Part(
            "whole cell", share(results["unasked"][cell.column]), lambda _: share(canvas.unasked()[cell.column])
        )
    row, figure = cell.row, results["sweep"]["methods"][cell.row]["figures"][cell.column]
    only = NEEDED.get(cell.column.removesuffix("_ratio"), WRITTEN)
    concepts, what = list(canvas_page.SWEPT_CONCEPTS), "whole cell"
    if len(only) > 2:
        if cell.column.endswith("_ratio") or not whole(figure["value"]):
            raise TooLong("of six concepts and several families, and no part of it is committed")
        concepts = [one_of(cell, concepts)]
        what = f"every prompt of {concepts[0]}"

    def swept(work: Path) -> Any:
        made = bench(work, "standard", row, concepts, prompts=3, searches=False, only=only, batch=6)
        return made["figures"][cell.column]["value"]

    return Part(what, figure["value"], swept)


def attacked(cell: Cell, results: Mapping[str, Any]) -> Part:
    """Return the part of the mean over attacks that is one concept's attacks without a search."""
    known = results["methods"][cell.column]["concepts"]
    concept = one_of(cell, known)
    keys = [f"asr.{name}" for name in ATTACKS if name in WRITTEN]

    def compute(work: Path) -> Any:
        made = bench(work, results["size"], cell.column, [concept], only=WRITTEN, searches=False, batch=8)
        return [share(made["concepts"][concept].get(key)) for key in keys]

    committed = [share(known[concept].get(key)) for key in keys]
    return Part(
        f"share and prompts of each attack without a search ({', '.join(WRITTEN)}) on {concept}", committed, compute
    )


def of_saemnesia(cell: Cell, results: Mapping[str, Any]) -> Part:
    if cell.table == "Choosing settings":
        return of_concept(cell, results["tuning"], cell.row, cell.column.removesuffix("_ratio"), prompts=4, batch=8)
    if cell.table == "Attacks":
        if cell.column == "concepts":
            raise TooLong("a count")
        row, key = cell.column, f"asr.{cell.row}"
    elif cell.table == "Canvas":
        row = next(name for name, says in saemnesia.ROWS.items() if says == cell.row)
        key = {"IRA": "ira", "CRA": "cra", "UA objects": "ua", "UA styles": "ua"}.get(cell.column, cell.column)
        if key in ("average", "Fréchet"):
            raise TooLong("of many concepts, and no part of it is committed")
        if key == "kB":
            raise TooLong("bytes of a record that has gained a verdict since")
    else:
        raise TooLong("takes minutes, and no part of it is committed")
    if row == "saeuron":
        raise TooLong("of settings that are no longer the defaults")
    return of_concept(cell, results["canvas"], row, key, prompts=4, batch=8)


def of_snce(cell: Cell, results: Mapping[str, Any]) -> Part:
    row, concept = "default", cell.row
    if cell.table == "Unerased":
        key = next(key for key, says in snce_figures.BEFORE.items() if says == cell.column)
    else:
        key = next(key for key, says in snce_figures.COLUMNS.items() if says == cell.column)
        row = next(name for name in snce_figures.ROWS if snce_figures.title(name) == cell.table)
    if concept == "pooled":
        committed = results["rows"][row]["pooled"][key]["value"]
        concept = one_of(cell, results["rows"][row]["concepts"])
    else:
        committed = results["rows"][row]["concepts"][concept][key]["value"]
    n = results["images_a_family"]
    own = "mixed" if key.startswith(("partner", "target_mixed")) else "unrelated"
    own = own if key.startswith(("partner", "target_mixed", "others", "unrelated")) else "direct"
    own = "synonym" if "synonym" in key else own
    if cell.table != "Unerased":
        if key == "others_delta" or not whole(committed):
            raise TooLong("of 400 images, and no part of it is committed")
        n = FEW

    def compute(work: Path) -> Any:
        # A family of no prompts has no figure; the one that counts is computed as the whole run computes it.
        groups = [few(group, n if group.name == own else 1) for group in families(concept, n)]
        pipe = reference.load()
        before = generate(pipe, groups)
        after = before
        if cell.table != "Unerased":
            config = SNCEConfig(
                **{**results["config"], "sae": str(reference.sae_folder()), "examine": 20, "neurons": ()}
            )
            pairs = from_templates(concept, (concept,))
            settings = {**vars(config), **snce_figures.settings(row)}
            with fit(pipe, pairs, SNCEConfig(**settings)).attach(pipe):
                after = generate(pipe, groups)
        outcomes = judge(concept, groups, before, after)
        return (figures(outcomes) | further_figures(outcomes))[key].to_json()["value"]

    what = "whole cell" if cell.table == "Unerased" else f"{n} of its {results['images_a_family']} prompts of {concept}"
    return Part(what, committed, compute)


def few(group: Family, n: int) -> Family:
    """Return the first prompts of a family."""
    return Family(group.name, group.prompts[:n], group.seeds[:n], group.others[:n], group.lost)


def of_choosing(cell: Cell, results: Mapping[str, Any]) -> Part:
    if cell.table == "Does it predict?":
        raise TooLong("of 18 SAEs")
    wanted = next(one for one in results["saes"] if one["name"] == cell.row)
    if cell.column == "erased":
        concept = one_of(cell, choosing_saes.CONCEPTS)
        what, committed = f"the SAE trained, then {concept} erased with it", results["quality"][cell.row][concept]
    else:
        what, committed = "whole cell: the SAE trained and measured on ten concepts", wanted[cell.column]

    def compute(work: Path) -> Any:
        return choosing(work, cell.row, cell.column, "" if cell.column != "erased" else concept)

    return Part(what, committed, compute)


def choosing(work: Path, name: str, column: str, concept: str) -> Any:
    """Return a figure of one SAE of the sweep, trained now; with a concept, how well it erases it."""
    pipe = reference.load()
    path, expansion, k = re.fullmatch(r"(.+)-x(\d+)-k(\d+)", name).groups()  # type: ignore[union-attr]
    grid = choosing_saes.grid([choosing_saes.parse_site(pipe, path)], [int(expansion)], [int(k)])
    every, about = choosing_saes.recipe_prompts("reference")
    rows = choosing_saes.sweep(
        pipe,
        grid,
        every[:: -(-len(every) // 4000)],
        choosing_saes.concepts_of(",".join(choosing_saes.CONCEPTS)),
        choosing_saes.replace(choosing_saes.BUNDLED, tokens=1_000_000),
        work / "saes",
        card_of={"model": "bundled", "corpus": f"every third of {about['corpus']}"},
    )
    if not concept:
        return rows[0][column]
    made = bench(work, "quick", f"snce:sae={work / 'saes' / name}", [concept], **choosing_saes.CANVAS)
    return choosing_saes._quality(made["concepts"].get(concept))


def of_several(cell: Cell, results: Mapping[str, Any]) -> Part:
    names = several_concepts.CONCEPTS[: int(cell.row)]
    key = next(key for key, says in several_concepts.COLUMNS.items() if says == cell.column)
    figure = next(row for row in results["rows"] if len(row["concepts"]) == len(names))[key]
    if key == "others_delta" or not whole(figure["value"]):
        raise TooLong("of 100 images twice, and no part of it is committed")

    def compute(work: Path) -> Any:
        suite, pipe = Canvas(), reference.load()
        asked = several_concepts.unrelated(100)[:FEW]
        if key == "still_drawn":
            asked = [
                case for name in names for case in several_concepts.family(name, "direct", max(2, FEW // len(names)))
            ]
        before = suite.draw(pipe, asked)
        config = SNCEConfig(sae=str(reference.sae_folder()))
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(fit(pipe, suite.concept(name), config).attach(pipe))
            after = suite.draw(pipe, asked)
        if key == "still_drawn":
            seen, after_seen = suite.judge(asked, before.pixels), suite.judge(asked, after.pixels)
            still = [own["target"] for plain, own in zip(seen, after_seen, strict=True) if plain["target"]]
            return sum(still) / len(still)
        return sum(bool((a == b).all()) for a, b in zip(before.pixels, after.pixels, strict=True)) / len(asked)

    prompts = (
        f"{max(2, FEW // len(names))} direct prompts of each" if key == "still_drawn" else f"{FEW} of its 100 prompts"
    )
    return Part(f"{len(names)} erasers attached together, {prompts}", figure["value"], compute)


PARTS: dict[str, Callable[[Cell, Mapping[str, Any]], Part]] = {
    "peers": of_peers,
    "canvas": of_canvas,
    "saemnesia": of_saemnesia,
    "snce": of_snce,
    "choosing_saes": of_choosing,
    "several_concepts": of_several,
}


def outcome(
    chosen: Sequence[tuple[Cell, Part]], skipped: Sequence[tuple[Cell, str]], found: Mapping[str, Any]
) -> dict[str, Any]:
    """Return, as JSON, the cells computed so far and those left out, with where they come from."""
    return {
        **provenance(COMMAND),
        "drawn": len(chosen),
        "cells": [
            {
                "cell": str(cell),
                "text": cell.text,
                "what": part.what,
                "committed": shortened(part.committed),
                **found[str(cell)],
                "now": shortened(found[str(cell)]["now"]),
                "note": NOTES.get(str(cell), ""),
            }
            for cell, part in chosen
            if str(cell) in found
        ],
        "pages": DRAWN,
        "left_out": [{"cell": str(cell), "text": cell.text, "why": why} for cell, why in skipped],
    }


def page(results: Mapping[str, Any]) -> str:
    """Return the table of the cells computed so far, and the list of those left out."""
    cells_ = results["cells"]
    equal = wilson(sum(one["equal"] for one in cells_), len(cells_)).to_json()
    lines = [
        "# Committed figures, computed again",
        "",
        f"{in_words(results)}.",
        f"{len(cells_)} of {results['drawn']} cells computed, most of them in part (one concept, some of the prompts),",
        f"as the table says; {len(results['left_out'])} others were left out. Equal are {in_percent(equal)} % of those",
        "computed, with Wilson's 95 % interval.",
        "The cells are as the pages had them then. Shares are between 0 and 1; `[share, n]` is a share",
        "with the number of prompts behind it. What is compared is every digit in the json files of this folder, or",
        "every bit of an image.",
        "",
        "| | cell | as printed | what was computed | committed | now | equal | s |",
        "|---" * 8 + "|",
    ]
    for n, one in enumerate(cells_, 1):
        texts = (one["cell"], one["text"], one["what"], json.dumps(one["committed"]), json.dumps(one["now"]))
        lines.append(f"| {n} | {' | '.join(texts)} | {'yes' if one['equal'] else 'no'} | {one['seconds']} |")
    for one in cells_:
        if one["note"]:
            lines += ["", f"{one['cell']}: {one['note']}"]
    lines += ["", "## How the cells were chosen"]
    counts = ", ".join(f"{count} of {name}.md" for name, count in results["pages"].items())
    lines += [f"{counts}, each page's by a generator of its own seed. smollm2.md needs SmolLM2's weights,"]
    lines += ["which do not ship with Excise, so none of its cells was drawn. The other json files hold times."]
    lines += ["These cells were drawn and gave way to the next:", ""]
    lines += [f"- {one['cell']} ({one['text']}): {one['why']}." for one in results["left_out"]]
    return "\n".join(lines) + "\n"


NOTES: dict[str, str] = {
    "choosing_saes.md, Choosing an SAE without generating pictures: encoder.layers.5-x8-k8, i_cdf": (
        "this page's SAEs were trained with the first state of every prompt (BOS), which has been left out since "
        "2026-11-28 ([decision 2](../decisions/0002-bos-not-trained.md)). With it, today's code gives 8.625, and what "
        "makes up the rest has not been found."
    ),
}
"""By cell: why it differs."""


def shortened(value: Any) -> Any:
    """Return the value, rounded to six digits."""
    return round(value, 6) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
