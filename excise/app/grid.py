"""Pictures side by side in one PNG: a row before, a row after, for each family."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from excise.app.measure import TITLES, Outcome, Pictures
from excise.bench.pictures import png

MARGIN, GAP, LABEL = 24, 6, 30
WIDEST = 1600
"""How far a long label may widen the sheet, in pixels."""
GROUND, INK, FAINT = (255, 255, 255), (24, 24, 32), (110, 114, 130)


def rows_png(rows: Sequence[tuple[str, Pictures]], scale: int = 2) -> bytes:
    """A PNG with one labelled row a batch of pictures `[n, height, width, 3]`; an empty label draws none."""
    size = [scale * s for s in rows[0][1].shape[1:3]]
    columns = max(len(pictures) for _, pictures in rows)
    width = 2 * MARGIN + columns * (size[1] + GAP) - GAP
    height = 2 * MARGIN + sum(size[0] + GAP + (LABEL if label else 0) for label, _ in rows)
    font = ImageFont.load_default(17)
    longest = max(font.getlength(label) for label, _ in rows)
    sheet = Image.new("RGB", (max(width, min(WIDEST, 2 * MARGIN + int(longest))), height), GROUND)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for label, pictures in rows:
        if label:
            draw.text((MARGIN, top + 5), label, fill=INK if label[0].isupper() else FAINT, font=font)
            top += LABEL
        for column, picture in enumerate(pictures):
            drawn = Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.NEAREST)
            sheet.paste(drawn, (MARGIN + column * (size[1] + GAP), top))
        top += size[0] + GAP
    return png(np.asarray(sheet))


def comparison_png(outcomes: Sequence[Outcome], columns: int = 12) -> bytes:
    """The first `columns` prompts of each family, the upper row unerased and the lower row erased."""
    rows: list[tuple[str, Pictures]] = []
    for outcome in outcomes:
        title = f"{TITLES[outcome.family.name]}  (above: unerased, below: erased)"
        rows += [(title, outcome.before[:columns]), ("", outcome.after[:columns])]
    return rows_png(rows)
