"""Generating pictures from prompts, into one sheet or separate files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from excise import reference
from excise.app.pages.sheet import Block, Item, sheet
from excise.bench.pictures import png, read
from excise.bench.protocols.prompts import load
from excise.concepts import read_prompts
from excise.concepts.minors import names_minors
from excise.drawn import Drawn, Pixels
from excise.erasers import Attachments, Eraser
from excise.erasers.guard.model_digest import model_digests
from excise.errors import ExciseError
from excise.files import sha256, write_atomic
from excise.outputs import PICTURE, check_absent, check_file, check_resumed
from excise.pipeline import Pipeline, as_diffusers
from excise.settings import LARGEST_SEED
from excise.sites.truncation import Cut, cuts, label

BATCH = 8
"""Pictures generated together."""
BEFORE, AFTER = "unerased", "erased"


@dataclass(frozen=True)
class Asked:
    """A prompt with its seeds."""

    prompt: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Read:
    """The prompts of a file, and what is not used of it."""

    asked: list[Asked]
    dropped: int
    """How many rows mention minors. They are never generated."""
    unread: tuple[str, ...]
    """Columns that are ignored: all pictures use the --guidance scale and the pipeline's default size."""


def read_asked(path: Path, seed: int = 0, n: int = 1) -> Read:
    """Read prompts from a .txt file (one per line), or from a .csv or .jsonl file as `excise bench` does.

    Each prompt gets `n` consecutive seeds, starting at the row's seed, or at `seed` if the row has none.

    Raises:
        ExciseError: As `excise.bench.protocols.prompts.load`, the file is of another kind, or a seed exceeds the
            largest.
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
            raise ExciseError(f"{path} holds no prompts that may be used ({dropped} dropped); choose another file")
    return Read([Asked(prompt, counted(first, n)) for prompt, first in rows], dropped, unread)


def counted(seed: int, n: int) -> tuple[int, ...]:
    """Return `n` consecutive seeds, starting at `seed`. Raises ExciseError if one exceeds the largest."""
    if seed + n - 1 > LARGEST_SEED:
        raise ExciseError(
            f"{n} seeds from {seed} on exceed {LARGEST_SEED}, the largest; start lower, or generate fewer pictures"
        )
    return tuple(range(seed, seed + n))


def denoising_steps(asked: Sequence[Asked], steps: int) -> int:
    """Return how many denoising steps `draw_prompts` takes on each side of a comparison."""
    return reference.denoising_steps(sum(len(one.seeds) for one in asked), steps, BATCH)


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
    guidance: float | None = reference.GUIDANCE,
    sae: Any | None = None,
    progress: Callable[[float], Any] | None = None,
) -> dict[str, Any]:
    """Generate a picture for every prompt and seed with `erasers` attached, and with `compare` also without them.

    Each file's metadata states how it was made: seed, steps, digests of model and erasers, strength. Pictures in
    `out_dir` are written as soon as they are generated. If a call ends early, by Ctrl-C or because a picture is broken,
    the same call generates only the missing ones.

    Args:
        pipe: The pipeline.
        asked: Prompts with their seeds.
        erasers: Erasers to attach, by name.
        out: A sheet with all pictures. It shows prompts as headings.
        out_dir: A folder for separate PNGs at full size.
        force: Replace existing files.
        keep_prompt: Whether the files' metadata includes the prompt.
        compare: Whether to generate each picture without the erasers as well.
        strength: Strength of the erasers.
        steps: Denoising steps.
        guidance: Guidance scale; None uses the pipeline's default.
        sae: SAE for erasers that need theirs.
        progress: Called with the denoising steps done since its last call.

    Returns:
        What was written. `kept` counts pictures of an earlier, unfinished call.

    Raises:
        ExciseError: A prompt is empty, `out` is not a .png, a file of another call exists and `force` is not set, an
            eraser does not fit, a picture is broken, or a file cannot be written.
    """

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

    def metadata(made_with: Mapping[str, Any], prompt: str) -> dict[str, str]:
        stated = json.dumps({**made_with, **how}, ensure_ascii=False)
        text = {"Software": f"excise {version('excise')}", "excise": stated}
        return text | ({"Description": prompt} if keep_prompt else {})

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
        # With `force` the folder may still hold pictures of other calls: they must not count as this call's.
        if marker is not None and not force and not marker.exists():
            write_atomic(marker, "Run the same excise generate command again to generate the missing pictures.\n")
        write_atomic(path, data)

    def draw(attached: Mapping[str, Eraser], places: Sequence[Path]) -> Drawn:
        parts = []
        with Attachments.of(pipe, attached, strength=strength, sae=sae):
            for start in range(0, len(texts), batch):
                part = slice(start, start + batch)
                if places and kept.issuperset(places[part]):
                    parts.append(Drawn.of([read(path.resolve()) for path in places[part]]))
                    if progress is not None:
                        progress(steps)
                    continue
                drawn = reference.draw(
                    pipe, texts[part], seeds[part], steps=steps, guidance=guidance, batch_size=batch, progress=progress
                )
                if out_dir is None:
                    drawn.sound(seeds[part])  # a sheet needs all pictures: raise early
                parts.append(drawn)
                # Write at once, so that these pictures are kept whatever happens to the rest.
                for path, n in zip(places[part], range(start, len(texts)), strict=False):
                    made_with = {"seed": seeds[n], **(edited if attached else {})}
                    if drawn.faults[n - start] is None and path not in kept:
                        write(path, png(drawn.pixels[n - start], metadata(made_with, texts[n])))
        return Drawn.joined(parts)

    made: dict[str, Drawn] = {}
    for n, side in enumerate(_sides(erasers, compare)):
        made[side] = draw(erasers if side == AFTER else {}, files[n * len(texts) : (n + 1) * len(texts)])
    try:
        Drawn.joined(list(made.values())).sound(seeds * len(made))
    except ExciseError as error:
        written = sum(path.exists() for path in files)
        more = f"; {written} others are in {out_dir}, and the same call keeps them" if written else ""
        raise ExciseError(f"{error}{more}") from error
    sides = {side: drawn.pixels for side, drawn in made.items()}
    if out is not None:
        made_with = {"seeds": sorted(set(seeds)), **(edited if erasers else {})}
        prompts = [one.prompt for one in asked]
        blocks = _blocks(asked, sides, erasers, cuts(pipe, prompts))
        write_atomic(out, sheet(blocks, metadata(made_with, "\n".join(prompts))))
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
    """Raise ExciseError if `draw_prompts` would, as far as can be known before a model is loaded."""
    if not asked or not all(one.prompt.strip() for one in asked):
        raise ExciseError("a prompt is empty; give a prompt with --prompt")
    if out is not None:
        check_file(out, PICTURE, force=force)
    if out_dir is not None:
        check_resumed(out_dir, option="--out-dir")
        # Whether an unfinished call is this one is only known once the model is loaded.
        if not any(out_dir.glob(_unfinished("*"))):
            check_absent(*_files(asked, erasers, out_dir, compare), force=force)


def _sides(erasers: Sized, compare: bool) -> list[str]:
    return [BEFORE] if not erasers else [BEFORE, AFTER] if compare else [AFTER]


def _files(asked: Sequence[Asked], erasers: Sized, folder: Path, compare: bool) -> list[Path]:
    """Return the paths of all pictures, one side after the other, named by the prompt's number, seed and side."""
    pairs = [(number, seed) for number, one in enumerate(asked, 1) for seed in one.seeds]
    sides = _sides(erasers, compare)
    return [folder / f"{number:04d}-seed-{seed}-{side}.png" for side in sides for number, seed in pairs]


def _unfinished(call: str) -> str:
    """Return the name of the marker file that is in the folder until all of the call's pictures are written."""
    return f".unfinished-{call}"


def _blocks(
    asked: Sequence[Asked], sides: Mapping[str, Pixels], erasers: Mapping[str, Eraser], cut: Sequence[Cut] = ()
) -> list[Block]:
    """Return a block for each prompt: for each seed its pictures side by side. Headings mark a truncated end."""
    lost = {one.prompt: one.lost for one in cut}
    erased = ", ".join(dict.fromkeys(eraser.concept for eraser in erasers.values()))
    captions_by_side = {BEFORE: BEFORE, AFTER: f"{erased} erased"}
    several = len({seed for one in asked for seed in one.seeds}) > 1
    blocks, n = [], 0
    for one in asked:
        items = []
        for seed in one.seeds:
            captions = [captions_by_side[side] if erasers else "" for side in sides]
            if several:
                captions[0] = f"{captions[0]}, seed {seed}" if captions[0] else f"seed {seed}"
            items.append(Item([pictures[n] for pictures in sides.values()], captions))
            n += 1
        blocks.append(Block(label(one.prompt, lost.get(one.prompt, "")), items))
    return blocks
