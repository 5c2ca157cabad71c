"""Drawing prompts into one picture file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from excise.app.grid import rows_png
from excise.erasers import Attachments, Eraser
from excise.errors import ExciseError
from excise.files import write_atomic
from excise.reference.bundle import GUIDANCE

BATCH = 8
"""Pictures drawn together."""


def denoising_steps(pictures: int, steps: int) -> int:
    """How many steps `draw_prompts` takes for `pictures`, for each side of a comparison."""
    return -(-pictures // BATCH) * steps


def draw_prompts(
    pipe: Any,
    prompts: Sequence[str],
    erasers: Mapping[str, Eraser],
    out: Path,
    *,
    compare: bool = False,
    strength: float = 1.0,
    n: int = 1,
    seed: int = 0,
    steps: int = 20,
    guidance: float | None = GUIDANCE,
    sae: Any | None = None,
    progress: Callable[[float], Any] | None = None,
) -> dict[str, Any]:
    """Write a PNG with a row a prompt (with `compare` two: without and with the erasers), seeds counting from `seed`.

    `guidance` None leaves the scale to the pipeline's own default.
    Raises ExciseError where a prompt is empty, the name is no .png, the eraser does not fit, or the disk refuses.
    """
    from excise.reference import generate

    if not prompts or not all(p.strip() for p in prompts):
        raise ExciseError("a prompt is empty; say what to draw with --prompt")
    if out.suffix.lower() != ".png":
        raise ExciseError(f"cannot draw to '{out.name}': the name must end in .png")
    texts = [p for p in prompts for _ in range(n)]
    seeds = [seed + i for _ in prompts for i in range(n)]
    batch = min(BATCH, len(texts))

    def draw(attached: Mapping[str, Eraser]) -> Any:
        with Attachments.of(pipe, attached, strength=strength, sae=sae):
            return generate(pipe, texts, seeds, steps=steps, guidance=guidance, batch_size=batch, progress=progress)

    plain = draw({}) if compare or not erasers else None
    edited = draw(erasers) if erasers else None
    erased = ", ".join(dict.fromkeys(eraser.concept for eraser in erasers.values()))
    rows = []
    for i, prompt in enumerate(prompts):
        part = slice(i * n, (i + 1) * n)
        if plain is not None:
            rows.append((f"{prompt}  (unerased)" if compare else prompt, plain[part]))
        if edited is not None:
            rows.append((f"{prompt}  (erased: {erased})", edited[part]))
    width = rows[0][1].shape[2]
    write_atomic(out, rows_png(rows, scale=max(1, 256 // width)))
    changed = None
    if plain is not None and edited is not None:
        changed = int((plain != edited).any(axis=(1, 2, 3)).sum())
    return {
        "out": str(out),
        "erasers": [*erasers],
        "pictures": sum(len(p) for _, p in rows),
        "seeds": seeds[:n],
        "changed": changed,
    }
