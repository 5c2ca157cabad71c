"""What erased pictures show by `--replace-with`: chimeras or scenes, and what else changed.

    python -m benchmarks.figures.replacing --out docs/results/replacing.json

λ was chosen on five tuning concepts. The frozen test set's objects, on which nothing was chosen, have their own table.

Each concept is erased by SNCE as it is by default, and with the states of nothing or of another word in its place. The
file and its page are written after each concept, which takes about two minutes of one core. `--strip FILE.png` draws a
few pictures for the page.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from excise import reference
from excise.app.bench.provenance import by_concept, in_words, provenance
from excise.bench.canvas.distances import features
from excise.bench.canvas.families import cases
from excise.bench.canvas.remains import remains, unchanged_outside
from excise.bench.canvas.sizes import FROZEN, TUNING
from excise.bench.canvas.suite import Canvas
from excise.bench.frechet import LEAST, frechet
from excise.bench.pictures import Pixels, png
from excise.bench.suite import Case
from excise.erasers.proof.effects import text_changes
from excise.files import write_atomic
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.snce import fit
from excise.reference.scenes import Scene, backdrop, place_objects, render
from excise.reference.world import OBJECTS
from excise.sae import load
from excise.statistics import in_percent, mean_over, share_over

COMMAND = "python -m benchmarks.figures.replacing"
CHOSEN_ON = tuple(name for name in TUNING if name in OBJECTS)[:5]
UNSEEN = tuple(name for name in FROZEN if name in OBJECTS)
WORDS = {name: group[n - 1] for group in (CHOSEN_ON, UNSEEN) for n, name in enumerate(group)}
"""The word in a concept's place: the concept before it."""
WORD, FURTHER = "WORD", 1.25
ROWS: dict[str, dict[str, Any]] = {
    "default": {},
    "nothing": {"replace_with": "nothing", "lam": 1.0},
    "nothing, 1.25": {"replace_with": "nothing", "lam": FURTHER},
    WORD: {"replace_with": WORD, "lam": 1.0},
    f"{WORD}, 1.25": {"replace_with": WORD, "lam": FURTHER},
}
"""Settings that a row changes."""
SHOWN = {
    "dog": "an emoji of a dog on grass",
    "horse": "a horse on squared paper",
    "bus": "a bus on sand",
    "frog": "a frog in the sky",
}
"""Prompts of the strip of pictures, by concept."""
PROMPTS, UNRELATED = 8, 40
"""Prompts with the concept, by family, and prompts of other objects whose states are compared."""
FAMILIES = ("direct", "synonym", "mixed")
COMPONENTS = 12
"""Components of the judge's features for Fréchet distances, so that 60 pictures of all concepts are enough."""
WITHOUT, INSTEAD = "without", "instead"
"""Real scenes without the concept, and with WORD's object in its place."""
HEADS = {
    "gone": "direct: gone",
    "left_other": "other object",
    "left_empty": "empty scene",
    "left_unrecognisable": "unrecognisable",
    "word": "shows WORD",
    "outside_kept": "outside the object kept",
    "synonym": "synonym: gone",
    "mixed": "mixed: gone, partner kept",
    "untouched": "other prompts untouched",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/replacing.json"))
    parser.add_argument("--concepts", default=",".join((*CHOSEN_ON, *UNSEEN)))
    parser.add_argument("--n", type=int, default=PROMPTS, help="prompts of each family with the concept")
    parser.add_argument("--strip", type=Path, help="only draw the pictures of the page into this .png")
    options = parser.parse_args()
    if options.strip is not None:
        write_atomic(options.strip, strip(reference.load()))
        return
    measure = partial(measured, reference.load(), options.n)
    origin = partial(provenance, f"{COMMAND} --n {options.n}", ["snce"])
    print(page(by_concept(options.out, options.concepts.split(","), measure, page, origin)))


def measured(pipe: Any, n: int, name: str) -> dict[str, Any]:
    """Return, by row and figure, the outcome of each picture that counts."""
    sae = load(reference.sae_folder())
    asked = [case for case in cases(name, n) if case.family in FAMILIES]
    canvas = Canvas(batch=min(len(asked), 32))
    others = [case.prompt for case in cases(name, UNRELATED) if case.family == "unrelated"]
    before = canvas.draw(pipe, asked).pixels
    unerased = canvas.judge(asked, before)
    shown = [n for n, was in enumerate(unerased) if was["target"]]
    scenes = real_scenes(name, n, [asked[at] for at in shown], WORDS[name])
    sides = {side: [render(scene) for scene in some] for side, some in scenes.items()}
    found: dict[str, Any] = {"scenes": {side: traits(some) for side, some in sides.items()}}
    found["scenes"]["unerased"] = traits([before[at] for at in shown])
    for label, settings in ROWS.items():
        own = {**settings, "sae": str(reference.sae_folder())}
        if own.get("replace_with") == WORD:
            own["replace_with"] = WORDS[name]
        eraser = fit(pipe, canvas.concept(name), SNCEConfig(**own), sae=sae)
        with eraser.attach(pipe):
            after = canvas.draw(pipe, asked).pixels
            changes = text_changes(pipe, others)
        found[label] = figures(asked, before, after, unerased, canvas.judge(asked, after), WORDS[name])
        found[label] |= {"untouched": [change == 0 for change in changes], "weak": list(eraser.weak)}
        found[label]["traits"] = traits([after[at] for at in shown])
    return found


def traits(pictures: Sequence[Any]) -> list[list[float]]:
    """Return features of pictures `[64, 64, 3]`, to compute Fréchet distances from."""
    if not len(pictures):
        return []
    made: Pixels = np.stack([np.asarray(picture) for picture in pictures])
    return [[round(float(value), 3) for value in row[:COMPONENTS]] for row in features(made)]


def real_scenes(name: str, n: int, asked: Sequence[Case], word: str) -> dict[str, list[Scene]]:
    """Return real scenes without the concept, and with the word's object in its place: two sets of each.

    Each set has a scene for each case, of another prompt of its family: the first set of the n prompts after those that
    are asked, the second of the n after these. Sets end in "" and " again". Where a prompt names a second object,
    it stands where it would next to the concept.
    """
    more = {(case.family, case.seed): case for case in cases(name, 3 * n)}
    rng, found = random.Random(f"replacing {name}"), dict[str, list[Scene]]()
    for which, first in (("", n), (" again", 2 * n)):
        found |= {WITHOUT + which: [], INSTEAD + which: []}
        for case in asked:
            other = more[case.family, first + case.seed]
            things = rng.sample((WORD, *other.keeps), 1 + len(other.keeps))
            boxes = place_objects(rng, len(things))
            left = [at for at, thing in enumerate(things) if thing != WORD]
            placed = {
                WITHOUT: ([things[at] for at in left], [boxes[at] for at in left]),
                INSTEAD: ([word if thing == WORD else thing for thing in things], boxes),
            }
            for side, (objects, where) in placed.items():
                found[side + which].append(Scene(tuple(objects), other.style, other.background, tuple(where)))
    return found


def strip(pipe: Any) -> bytes:
    """Return a PNG: pictures of four prompts, a row each for the unerased model, the default, nothing and apple."""
    sae, canvas = load(reference.sae_folder()), Canvas(batch=4)
    rows = [reference.generate(pipe, list(SHOWN.values()), range(len(SHOWN)), batch_size=4)]
    for word in ("", "nothing", "apple"):
        config, row = SNCEConfig(sae=str(reference.sae_folder()), replace_with=word), []
        for seed, (name, prompt) in enumerate(SHOWN.items()):
            with fit(pipe, canvas.concept(name), config, sae=sae).attach(pipe):
                row += list(reference.generate(pipe, [prompt], [seed], batch_size=4))
        rows.append(np.stack(row))
    return png(np.concatenate([np.concatenate(list(row), 1) for row in rows]).repeat(2, 0).repeat(2, 1))


def figures(
    asked: Sequence[Case],
    before: Any,
    after: Any,
    unerased: Sequence[Mapping[str, Any]],
    seen: Sequence[Mapping[str, Any]],
    word: str,
) -> dict[str, list[Any]]:
    """Return the outcomes by figure, of pictures whose unerased version shows the concept.

    It is gone if neither judge sees it. What is left, and the share of pixels outside the object that are unchanged,
    are those of direct prompts.
    """
    out: dict[str, list[Any]] = {key: [] for key in HEADS if key != "untouched"}
    for case, plain, made, was, now in zip(asked, before, after, unerased, seen, strict=True):
        if not was["target"]:
            continue
        gone = not (now["target"] or now["second"]["target"])
        if case.family == "synonym":
            out["synonym"].append(gone)
        elif case.family == "mixed":
            out["mixed"] += [gone and all(now["kept"])] if all(was["kept"]) else []
        else:
            out["gone"].append(gone)
            left = remains(bool(now["others"] or now["second"]["others"]), now["covered"])
            for kind in ("other", "empty", "unrecognisable") if gone else ():
                out[f"left_{kind}"].append(left == kind)
            out["word"] += [word in now["others"]] if gone else []
            if was["background"] and was["style"]:
                share = unchanged_outside(np.asarray(made), np.asarray(plain), backdrop(case.background, case.style))
                out["outside_kept"] += [] if share is None else [round(share, 4)]
    return out


def page(results: Mapping[str, Any]) -> str:
    """Return the page."""
    concepts = results["concepts"]
    groups = {
        "On tuning concepts": {name: own for name, own in concepts.items() if name in CHOSEN_ON},
        "On the frozen test set's objects": {name: own for name, own in concepts.items() if name in UNSEEN},
    }
    lines = [
        "# Another state in a concept's place",
        "",
        f"{in_words(results, COMMAND)}.",
        "SNCE in per cent with 95 % intervals (a bootstrap over concepts, widened to Wilson's over all pictures where",
        "it is too narrow) and the number of pictures or prompts.",
        "`default` turns the neuron down; `nothing` is `--replace-with nothing`, and WORD is",
        "another of the concepts. λ is 1, or 1.25, the default, which was chosen on the tuning concepts (drawn with",
        "λ = 1 and the eraser attached with strength 1.25, which is the same product). Pictures count if the unerased",
        "model draws the concept. It is gone if neither judge sees it; the next three columns, and the share that",
        "shows WORD, are of direct prompts in which it is. A pixel outside the object is kept if it is within 32 of",
        "255 of the unerased picture's from the same seed.",
        *(line for title, some in groups.items() if some for line in table(title, some)),
        "",
        "![Rows: unerased; the neuron turned down; nothing; apple](replacing.png)",
        "",
        "Prompts of a dog, a horse, a bus and a frog, from the same seeds: unerased, by the default, with nothing,",
        "and with an apple in their place (`--strip`).",
        "",
        "On the tuning concepts, turned down, the neuron leaves neither an object nor an empty scene in most pictures.",
        "Moved to the states without the concept, with λ = 1.25, nearly all are empty scenes whose rest is as it was;",
        "one picture in six with a second object is still wrong, about as by default. Moved to another word, that",
        "object stands there, and less of the rest is kept.",
    ]
    return "\n".join([*lines, ""])


def table(title: str, concepts: Mapping[str, Any]) -> list[str]:
    """Return the page's lines on a group of concepts."""
    counted = sum(len(own["default"]["gone"]) for own in concepts.values())
    distances = to_real_scenes(concepts)
    heads = [*HEADS.values(), *(["Fréchet distance to real scenes"] if distances else [])]
    lines = [
        "",
        f"## {title}",
        f"{', '.join(concepts)}: {counted} pictures of direct prompts count.",
        "",
        *(said(distances) if distances else []),
        f"| row | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for label in ROWS:
        rows = [own[label] for own in concepts.values()]
        cells = [cell(key, [row[key] for row in rows]) for key in HEADS] + ([distances[label]] if distances else [])
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += ["", "By concept: gone, unrecognisable, outside the object kept.", ""]
    lines += [f"| concept | {' | '.join(ROWS)} |", "|---" * (len(ROWS) + 1) + "|"]
    for name, own in concepts.items():
        lines.append(f"| {name} | {' | '.join(short(own[label]) for label in ROWS)} |")
    return lines


def to_real_scenes(concepts: Mapping[str, Any]) -> dict[str, str]:
    """Return Fréchet distances by row, of unerased pictures, between two sets of real scenes, and the number of each.

    Nothing if there are too few pictures for a covariance, or a concept was measured before there were any distances.
    """
    n = sum(len(own.get("scenes", {}).get(WITHOUT, ())) for own in concepts.values())
    if n < LEAST * COMPONENTS or not all("scenes" in own for own in concepts.values()):
        return {}

    def distance(*sides: tuple[str, str]) -> str:
        one, other = (np.array([row for own in concepts.values() for row in own[of][key]]) for of, key in sides)
        return f"{frechet(one, other):.2f}"

    found = {
        label: distance((label, "traits"), ("scenes", INSTEAD if label.startswith(WORD) else WITHOUT)) for label in ROWS
    }
    found["unerased"] = distance(("scenes", "unerased"), ("scenes", WITHOUT))
    found |= {side: distance(("scenes", side), ("scenes", f"{side} again")) for side in (WITHOUT, INSTEAD)}
    return found | {"n": str(n)}


def said(distances: Mapping[str, str]) -> list[str]:
    """Return what the page says of the Fréchet distances."""
    return [
        f"Fréchet distances are over the first {COMPONENTS} components of the judge's features, from all",
        f"{distances['n']} pictures that count to as many real scenes of other prompts of the same families: without",
        "the concept, or for WORD with that object in its place. So few pictures make them too large, by at most about",
        f"what two such sets of real scenes are apart: {distances[WITHOUT]} without the concept, {distances[INSTEAD]}",
        f"with WORD. The unerased pictures are {distances['unerased']} from scenes without it. Compare the rows with",
        "each other and with these alone.",
        "",
    ]


def cell(key: str, by_concept: Sequence[Sequence[Any]]) -> str:
    """Return a figure over all concepts."""
    over = mean_over if key == "outside_kept" else share_over
    return f"{in_percent(over(by_concept).to_json())}, {sum(map(len, by_concept))}"


def short(row: Mapping[str, Sequence[Any]]) -> str:
    """Return one concept's three figures."""
    means = [row[key] for key in ("gone", "left_unrecognisable", "outside_kept")]
    return ", ".join(f"{100 * sum(some) / len(some):.0f}" if some else "none" for some in means)


if __name__ == "__main__":
    main()
