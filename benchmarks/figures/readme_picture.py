"""The picture in README.md: images of the bundled model from the same seeds, without and with a concept erased.

    python benchmarks/figures/readme_picture.py

Nothing is chosen by how the erased picture looks. The styles are those in which the unerased model generates these
objects most clearly. The seeds are the first with which, by the bundled judge, it generates what the prompt says.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from excise import reference
from excise.app.erase.finding import erase, settings
from excise.app.pages.sheet import Block, Item, sheet
from excise.concepts import builtin
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
    erasers = {name: erase(pipe, builtin(name), settings(pipe))[0] for name in dict.fromkeys(row[0] for row in ROWS)}
    blocks = []
    for erased, prompt, shown in ROWS:
        before = reference.generate(pipe, [prompt] * len(SEEDS), list(SEEDS), batch_size=len(SEEDS))
        seed = next(n for n in SEEDS if judge(before[n : n + 1]).objects[0, OBJECTS.index(shown)])
        with erasers[erased].attach(pipe):
            after = reference.generate(pipe, [prompt] * len(SEEDS), list(SEEDS), batch_size=len(SEEDS))
        same = ": identical" if (before[seed] == after[seed]).all() else ""
        blocks.append(
            Block(f"“{prompt}”", [Item([before[seed], after[seed]], ["the model", f"“{erased}” erased{same}"])])
        )
        print(f"{prompt}: seed {seed}{same}")
    write_atomic(out, sheet(blocks, side=208, widest=960))


if __name__ == "__main__":
    main()
