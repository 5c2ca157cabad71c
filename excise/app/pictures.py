"""Drawing prompts: into one sheet, or into a file each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from excise.app.grid import Block, Item, sheet
from excise.bench.pictures import Pixels, png
from excise.concepts import read_prompts, read_rows
from excise.erasers import Attachments, Eraser
from excise.erasers.integrity import model_digests
from excise.errors import ExciseError
from excise.files import write_atomic
from excise.reference.bundle import GUIDANCE

BATCH = 8
"""Pictures drawn together."""
SEEDS = ("seed", "evaluation_seed", "sd_seed")
"""Columns of a file of prompts that may hold a seed."""
BEFORE, AFTER = "unerased", "erased"


@dataclass(frozen=True)
class Asked:
    """A prompt with the seeds it is drawn with."""

    prompt: str
    seeds: tuple[int, ...]


def read_asked(path: Path, seed: int = 0, n: int = 1) -> list[Asked]:
    """Prompts of a .txt file (one a line), or of a .csv or .jsonl file with a column `prompt` and perhaps `seed`.

    Each is drawn with `n` seeds, counting from the row's own, or from `seed` where it has none. Raises ExciseError for
    a file that is missing, empty or broken, and for a seed that is no whole number.
    """
    if path.suffix not in (".csv", ".jsonl"):
        return [Asked(prompt, tuple(range(seed, seed + n))) for prompt in read_prompts(path)]
    list(read_prompts(path))  # the same checks
    found = []
    for where, row in read_rows(path):
        prompt = str(row.get("prompt") or "").strip()
        column = next((name for name in SEEDS if name in row), None)
        own = str(row[column] if column else "").strip()
        if own and not (own.isascii() and own.isdigit()):
            raise ExciseError(f"{path}, {where}: {column} is {own!r}; a seed is a whole number, 0 or more")
        first = int(own) if own else seed
        if prompt:
            found.append(Asked(prompt, tuple(range(first, first + n))))
    return found


def denoising_steps(asked: Sequence[Asked], steps: int) -> int:
    """How many steps `draw_prompts` takes, for each side of a comparison."""
    return -(-sum(len(one.seeds) for one in asked) // BATCH) * steps


def draw_prompts(
    pipe: Any,
    asked: Sequence[Asked],
    erasers: Mapping[str, Eraser],
    out: Path | None,
    *,
    out_dir: Path | None = None,
    force: bool = False,
    keep_prompt: bool = False,
    compare: bool = False,
    strength: float = 1.0,
    steps: int = 20,
    guidance: float | None = GUIDANCE,
    sae: Any | None = None,
    progress: Callable[[float], Any] | None = None,
) -> dict[str, Any]:
    """Draw every prompt with every one of its seeds, with `erasers` attached; with `compare` without them as well.

    `out` is a sheet of all, `out_dir` a folder for a PNG each, in the size they were drawn in. Each file says how it
    was made (seed, steps, digests of model and erasers, strength), its prompt only with `keep_prompt`; a sheet shows
    prompts as headings. `guidance` None leaves the scale to the pipeline's own default.
    Raises ExciseError where a prompt is empty, `out` is no .png, a file is there already and `force` is not given, an
    eraser does not fit, a picture is broken, or the disk refuses.
    """
    from excise.reference import generate

    check(asked, erasers, out, out_dir, force=force, compare=compare)
    texts = [one.prompt for one in asked for _ in one.seeds]
    seeds = [seed for one in asked for seed in one.seeds]
    batch = min(BATCH, len(texts))

    how = {
        "steps": steps,
        "guidance": guidance,
        "model": {"pipeline": type(pipe).__name__, "sha256": model_digests(pipe)},
    }
    edited = {"strength": strength, "erasers": {name: eraser.digest for name, eraser in erasers.items()}}

    def chunks(own: Mapping[str, Any], prompt: str) -> dict[str, str]:
        told = {"Software": f"excise {version('excise')}", "excise": json.dumps({**own, **how}, ensure_ascii=False)}
        return told | ({"Description": prompt} if keep_prompt else {})

    def draw(side: str, attached: Mapping[str, Eraser]) -> Pixels:
        parts = []
        with Attachments.of(pipe, attached, strength=strength, sae=sae):
            for start in range(0, len(texts), batch):
                part = slice(start, start + batch)
                options = {"steps": steps, "guidance": guidance, "batch_size": batch, "progress": progress}
                parts.append(generate(pipe, texts[part], seeds[part], **options))
                # Written at once: what is drawn is kept, whatever becomes of the rest.
                for path, n in zip(files.get(side, ())[part], range(start, len(texts)), strict=False):
                    own = {"seed": seeds[n], **(edited if attached else {})}
                    write_atomic(path, png(parts[-1][n - start], chunks(own, texts[n])))
        return np.concatenate(parts)

    files = {} if out_dir is None else {side: _files(asked, side, out_dir) for side in _sides(erasers, compare)}
    sides = {side: draw(side, erasers if side == AFTER else {}) for side in _sides(erasers, compare)}
    if out is not None:
        own = {"seeds": sorted(set(seeds)), **(edited if erasers else {})}
        prompts = "\n".join(one.prompt for one in asked)
        write_atomic(out, sheet(_blocks(asked, sides, erasers), chunks(own, prompts)))
    changed = int((sides[BEFORE] != sides[AFTER]).any(axis=(1, 2, 3)).sum()) if len(sides) == 2 else None
    return {
        "out": None if out is None else str(out),
        "files": [str(path) for of_side in zip(*files.values(), strict=True) for path in of_side],
        "erasers": list(erasers),
        "pictures": len(texts) * len(sides),
        "seeds": sorted(set(seeds)),
        "changed": changed,
    }


def check(
    asked: Sequence[Asked],
    erasers: Sized,
    out: Path | None,
    out_dir: Path | None,
    *,
    force: bool = False,
    compare: bool = False,
) -> None:
    """Raise ExciseError where `draw_prompts` would: before a model is loaded, and before anything is drawn."""
    if not asked or not all(one.prompt.strip() for one in asked):
        raise ExciseError("a prompt is empty; say what to draw with --prompt")
    if out is not None and out.suffix.lower() != ".png":
        raise ExciseError(f"cannot draw to '{out.name}': the name must end in .png")
    if out is not None and out.is_dir():
        raise ExciseError(f"{out} is a folder; name a file, such as {out / 'sheet.png'}, or use --out-dir")
    if out_dir is not None and out_dir.exists() and not out_dir.is_dir():
        raise ExciseError(f"{out_dir} is a file; name a folder with --out-dir")
    wanted = (path for side in _sides(erasers, compare) if out_dir for path in _files(asked, side, out_dir))
    there = next((path for path in wanted if path.exists()), None)
    if there is not None and not force:
        raise ExciseError(f"{there} is there already; name another folder, or overwrite it with --force")


def _sides(erasers: Sized, compare: bool) -> list[str]:
    return [BEFORE] if not erasers else [BEFORE, AFTER] if compare else [AFTER]


def _files(asked: Sequence[Asked], side: str, folder: Path) -> list[Path]:
    """Names of one side's pictures: the prompt's number, the seed, the side."""
    pairs = ((number, seed) for number, one in enumerate(asked, 1) for seed in one.seeds)
    return [folder / f"{number:04d}-seed-{seed}-{side}.png" for number, seed in pairs]


def _blocks(asked: Sequence[Asked], sides: Mapping[str, Pixels], erasers: Mapping[str, Eraser]) -> list[Block]:
    """A block a prompt: for each seed its pictures side by side."""
    erased = ", ".join(dict.fromkeys(eraser.concept for eraser in erasers.values()))
    says = {BEFORE: BEFORE, AFTER: f"{erased} erased"}
    several = len({seed for one in asked for seed in one.seeds}) > 1
    blocks, n = [], 0
    for one in asked:
        items = []
        for seed in one.seeds:
            captions = [says[side] if erasers else "" for side in sides]
            if several:
                captions[0] = f"{captions[0]}, seed {seed}" if captions[0] else f"seed {seed}"
            items.append(Item([pictures[n] for pictures in sides.values()], captions))
            n += 1
        blocks.append(Block(one.prompt, items))
    return blocks
