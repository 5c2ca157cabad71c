"""Drawing prompts: into one sheet, or into a file each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from excise.app.pages.sheet import Block, Item, sheet
from excise.bench.pictures import png, read
from excise.bench.protocols.prompts import LARGEST_SEED, load
from excise.concepts import read_prompts
from excise.concepts.minors import names_minors
from excise.drawn import Drawn, Pixels
from excise.erasers import Attachments, Eraser
from excise.erasers.guard.model_digest import model_digests
from excise.errors import ExciseError
from excise.files import sha256, write_atomic
from excise.outputs import PICTURE, check_absent, check_file, check_resumed
from excise.pipeline import Pipeline, as_diffusers
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
    pipe: Pipeline,
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

    Pictures of `out_dir` are written as they are drawn. Where a call ends before all are there, since one is broken or
    by Ctrl-C, the same call draws what is missing and keeps the rest (`kept` says how many); with `force` it draws all.
    Raises ExciseError where a prompt is empty, `out` is no .png, a file is there already that is not this call's and
    `force` is not given, an eraser does not fit, a picture is broken, or the disk refuses.
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

    files = [] if out_dir is None else _files(asked, erasers, out_dir, compare)
    kept: set[Path] = set()
    marker = None
    if out_dir is not None:
        call = (
            [[one.prompt, one.seeds] for one in asked],
            how,
            edited,
            compare,
            keep_prompt,
            str(as_diffusers(pipe).dtype),
        )
        marker = out_dir / _unfinished(sha256(json.dumps(call).encode())[:16])
        if marker.exists() and not force:
            kept = {path for path in files if path.exists()}
        else:
            check_absent(*files, force=force)

    def write(path: Path, data: bytes) -> None:
        # With `force` there may be pictures of other calls yet, which this one goes on to replace.
        if marker is not None and not force and not marker.exists():
            write_atomic(marker, "The same call of excise generate draws what is missing.\n")
        write_atomic(path, data)

    def draw(attached: Mapping[str, Eraser], places: Sequence[Path]) -> Drawn:
        parts = []
        with Attachments.of(pipe, attached, strength=strength, sae=sae):
            for start in range(0, len(texts), batch):
                part = slice(start, start + batch)
                if places and kept.issuperset(places[part]):
                    parts.append(Drawn.of([read(path) for path in places[part]]))
                    if progress is not None:
                        progress(steps)
                    continue
                drawn = draw_batch(
                    pipe, texts[part], seeds[part], steps=steps, guidance=guidance, batch_size=batch, progress=progress
                )
                if out_dir is None:
                    drawn.sound(seeds[part])  # a sheet needs them all
                parts.append(drawn)
                # Written at once: what is drawn is kept, whatever becomes of the rest.
                for path, n in zip(places[part], range(start, len(texts)), strict=False):
                    own = {"seed": seeds[n], **(edited if attached else {})}
                    if drawn.faults[n - start] is None and path not in kept:
                        write(path, png(drawn.pixels[n - start], chunks(own, texts[n])))
        return Drawn.joined(parts)

    made: dict[str, Drawn] = {}
    for n, side in enumerate(_sides(erasers, compare)):
        own_files = files[n * len(texts) : (n + 1) * len(texts)]
        made[side] = draw(erasers if side == AFTER else {}, own_files)
    try:
        Drawn.joined(list(made.values())).sound(seeds * len(made))
    except ExciseError as error:
        there = sum(path.exists() for path in files)
        more = f"; {there} others are in {out_dir}, and the same call keeps them" if there else ""
        raise ExciseError(f"{error}{more}") from error
    sides = {side: drawn.pixels for side, drawn in made.items()}
    if out is not None:
        own = {"seeds": sorted(set(seeds)), **(edited if erasers else {})}
        prompts = "\n".join(one.prompt for one in asked)
        write_atomic(
            out, sheet(_blocks(asked, sides, erasers, cuts(pipe, [one.prompt for one in asked])), chunks(own, prompts))
        )
    if marker is not None:
        marker.unlink(missing_ok=True)
    changed = int((sides[BEFORE] != sides[AFTER]).any(axis=(1, 2, 3)).sum()) if len(sides) == 2 else None
    return {
        "out": None if out is None else str(out),
        "files": [str(path) for n in range(len(texts)) for path in files[n :: len(texts)]],
        "kept": len(kept),
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
    if out is not None:
        check_file(out, PICTURE, force=force)
    if out_dir is not None:
        check_resumed(out_dir, option="--out-dir")
        # Whose the pictures of an unfinished call are is known once the model is.
        if not any(out_dir.glob(_unfinished("*"))):
            check_absent(*_files(asked, erasers, out_dir, compare), force=force)


def _sides(erasers: Sized, compare: bool) -> list[str]:
    return [BEFORE] if not erasers else [BEFORE, AFTER] if compare else [AFTER]


def _files(asked: Sequence[Asked], erasers: Sized, folder: Path, compare: bool) -> list[Path]:
    """Names of all pictures, one side after the other: the prompt's number, the seed, the side."""
    pairs = [(number, seed) for number, one in enumerate(asked, 1) for seed in one.seeds]
    sides = _sides(erasers, compare)
    return [folder / f"{number:04d}-seed-{seed}-{side}.png" for side in sides for number, seed in pairs]


def _unfinished(call: str) -> str:
    """The name of the file that lies in a folder of pictures until all of that call are drawn."""
    return f".unfinished-{call}"


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
