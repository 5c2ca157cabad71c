"""Drawing prompts: into one sheet, or into a file each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from excise.app.grid import Block, Item, sheet
from excise.bench.pictures import png
from excise.bench.protocols.prompts import LARGEST_SEED, load
from excise.concepts import read_prompts
from excise.concepts.minors import names_minors
from excise.drawn import Drawn, Pixels
from excise.erasers import Attachments, Eraser
from excise.erasers.integrity import model_digests
from excise.errors import ExciseError
from excise.files import write_atomic
from excise.reference import GUIDANCE
from excise.sites.truncation import Cut, cuts, label

BATCH = 8
"""Pictures drawn together."""
BEFORE, AFTER = "unerased", "erased"


@dataclass(frozen=True)
class Asked:
    """A prompt with the seeds it is drawn with."""

    prompt: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Read:
    """The prompts of a file, and what of it is left out."""

    asked: list[Asked]
    dropped: int
    """Rows that concern minors: they are never drawn."""
    unread: tuple[str, ...]
    """Columns whose values are not used: every picture has the scale of --guidance and the pipeline's own size."""


def read_asked(path: Path, seed: int = 0, n: int = 1) -> Read:
    """Prompts of a .txt file (one a line), or of a .csv or .jsonl file as `excise bench` reads them.

    Each is drawn with `n` seeds, counting from the row's own, or from `seed` where it has none. Raises ExciseError as
    `excise.bench.protocols.prompts.load`, for a file of another kind, and for seeds that count up past the largest.
    """
    if path.suffix in (".csv", ".jsonl"):
        found = load(path, unseeded=seed)
        rows, dropped = [(row.prompt, row.seed) for row in found.rows], found.dropped
        names = ("guidance", "width", "height")
        unread = tuple(name for name in names if any(getattr(row, name) is not None for row in found.rows))
    else:
        prompts = list(read_prompts(path))
        rows, unread = [(prompt, seed) for prompt in prompts if not names_minors(prompt)], ()
        dropped = len(prompts) - len(rows)
        if not rows:
            raise ExciseError(f"{path} holds no prompts that may be drawn ({dropped} dropped); choose another file")
    return Read([Asked(prompt, counted(first, n)) for prompt, first in rows], dropped, unread)


def counted(seed: int, n: int) -> tuple[int, ...]:
    """The `n` seeds from `seed` on. Raises ExciseError where they count up past the largest."""
    if seed + n - 1 > LARGEST_SEED:
        raise ExciseError(
            f"{n} seeds from {seed} on count up past {LARGEST_SEED}, the largest; begin lower, or draw fewer"
        )
    return tuple(range(seed, seed + n))


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
    prompts as headings. A broken picture leaves the others of `out_dir` as they are: they are written before the error.
    `guidance` None leaves the scale to the pipeline's own default.
    Raises ExciseError where a prompt is empty, `out` is no .png, a file is there already and `force` is not given, an
    eraser does not fit, a picture is broken, or the disk refuses.
    """
    from excise.reference import draw as draw_batch

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

    def draw(side: str, attached: Mapping[str, Eraser]) -> Drawn:
        parts = []
        with Attachments.of(pipe, attached, strength=strength, sae=sae):
            for start in range(0, len(texts), batch):
                part = slice(start, start + batch)
                options = {"steps": steps, "guidance": guidance, "batch_size": batch, "progress": progress}
                drawn = draw_batch(pipe, texts[part], seeds[part], **options)
                if out_dir is None:
                    drawn.sound(seeds[part])  # a sheet needs them all
                parts.append(drawn)
                # Written at once: what is drawn is kept, whatever becomes of the rest.
                for path, n in zip(files.get(side, ())[part], range(start, len(texts)), strict=False):
                    own = {"seed": seeds[n], **(edited if attached else {})}
                    if drawn.faults[n - start] is None:
                        write_atomic(path, png(drawn.pixels[n - start], chunks(own, texts[n])))
        return Drawn.joined(parts)

    files = {} if out_dir is None else {side: _files(asked, side, out_dir) for side in _sides(erasers, compare)}
    made = {side: draw(side, erasers if side == AFTER else {}) for side in _sides(erasers, compare)}
    Drawn.joined(list(made.values())).sound(seeds * len(made))
    sides = {side: drawn.pixels for side, drawn in made.items()}
    if out is not None:
        own = {"seeds": sorted(set(seeds)), **(edited if erasers else {})}
        prompts = "\n".join(one.prompt for one in asked)
        write_atomic(
            out, sheet(_blocks(asked, sides, erasers, cuts(pipe, [one.prompt for one in asked])), chunks(own, prompts))
        )
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


def _blocks(
    asked: Sequence[Asked], sides: Mapping[str, Pixels], erasers: Mapping[str, Eraser], cut: Sequence[Cut] = ()
) -> list[Block]:
    """A block a prompt: for each seed its pictures side by side. The heading says what of a prompt is not read."""
    lost = {one.prompt: one.lost for one in cut}
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
        blocks.append(Block(label(one.prompt, lost.get(one.prompt, "")), items))
    return blocks
