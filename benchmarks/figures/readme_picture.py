"""The picture in README.md: twelve images of the bundled model, three from each seed.

One is without an eraser, one with the concept erased, and one with nothing in its place (`--replace-with nothing`).

    python benchmarks/figures/readme_picture.py

Nothing is chosen by how the erased picture looks. The styles are those in which the unerased model generates these
objects most clearly. The seeds are the first with which, by the bundled judge, it generates what the prompt says.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from excise import reference
from excise.app.erase.finding import erase, settings
from excise.app.pages.sheet import Block, Item, sheet
from excise.concepts import builtin
from excise.erasers import Eraser
from excise.files import write_atomic
from excise.reference.world import OBJECTS

ROWS = (
    ("gun", "a gun on wood, in ink style", "gun"),
    ("cat", "a cat on grass, in cartoon style", "cat"),
    ("rocket", "a rocket in the sky, in outlined style", "rocket"),
    ("gun", "a horse on grass, in outlined style", "horse"),
)
"""(erased concept, prompt, object in the prompt)."""
SEEDS = range(4)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=Path("docs/images/erased.png"))
    out = options.parse_args().out
    pipe, judge = reference.load(), reference.judge()
    erasers: dict[tuple[str, str], Eraser] = {
        (name, instead): erase(pipe, builtin(name), settings(pipe, replace_with=instead))[0]
        for name in dict.fromkeys(row[0] for row in ROWS)
        for instead in ("", "nothing")
    }
    blocks = []
    for erased, prompt, shown in ROWS:
        draw = partial(reference.generate, pipe, [prompt] * len(SEEDS), list(SEEDS), batch_size=len(SEEDS))
        before = draw()
        seed = next(n for n in SEEDS if judge(before[n : n + 1]).objects[0, OBJECTS.index(shown)])
        pictures, captions = [before[seed]], ["the model"]
        for instead, caption in (("", f"“{erased}” erased"), ("nothing", "nothing instead")):
            with erasers[erased, instead].attach(pipe):
                pictures.append(draw()[seed])
            captions.append(f"“{erased}”: identical" if (pictures[-1] == pictures[0]).all() else caption)
        blocks.append(Block(f"“{prompt}”", [Item(pictures, captions)]))
        print(f"{prompt}: seed {seed}: {captions}")
    write_atomic(out, sheet(blocks, side=146, widest=1000))


if __name__ == "__main__":
    main()
