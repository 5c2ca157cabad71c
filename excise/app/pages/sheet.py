"""Sheets: pictures of several prompts in one labelled PNG, before and after side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from excise.app.pages.lettering import Lettering
from excise.bench.pictures import Pictures, Pixels, png

MARGIN, GAP, APART = 28, 6, 28
"""Pixels around the sheet, between pictures of an item, and between items."""
WIDEST = 1680
"""Width of a sheet at which a new row begins, in pixels."""
NARROWEST = 620
"""Least width of a label, so that headings have room, in pixels."""
SMALLEST, LARGEST = 256, 512
"""Range of picture widths, in pixels. Pictures outside it are scaled."""
HEADING, CAPTION = 19, 15
"""Font sizes."""
GROUND, INK, FAINT = (246, 246, 248), (24, 24, 32), (104, 108, 122)


@dataclass(frozen=True)
class Item:
    """Pictures shown side by side, each `[height, width, 3]` with its caption."""

    pictures: Sequence[Pixels]
    captions: Sequence[str]


@dataclass(frozen=True)
class Block:
    """A prompt's heading and items."""

    heading: str
    items: Sequence[Item]


def sheet(
    blocks: Sequence[Block], text: Mapping[str, str] | None = None, side: int | None = None, widest: int = WIDEST
) -> bytes:
    """Return a PNG of the blocks, one below the other; narrow ones share a row.

    Headings and captions are wrapped, not truncated. Warns about characters that no installed font has.

    Args:
        blocks: The blocks.
        text: Text chunks for the PNG's metadata.
        side: Width of each picture in pixels; by default between 256 and 512.
        widest: Width in pixels at which a new row begins.
    """
    heading, caption = Lettering(HEADING), Lettering(CAPTION)
    laid = [_block(block, heading, caption, side, widest) for block in blocks]
    rows: list[list[Image.Image]] = []
    for made in laid:
        used = sum(other.width + APART for other in rows[-1]) if rows else widest
        if used + made.width <= widest - 2 * MARGIN:
            rows[-1].append(made)
        else:
            rows.append([made])
    widths = [sum(made.width + APART for made in row) - APART for row in rows]
    heights = [max(made.height for made in row) for row in rows]
    whole = Image.new("RGB", (max(widths) + 2 * MARGIN, sum(heights) + APART * (len(rows) - 1) + 2 * MARGIN), GROUND)
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        left = MARGIN
        for made in row:
            whole.paste(made, (left, top + height - made.height))  # align pictures under headings of any height
            left += made.width + APART
        top += height + APART
    heading.missing.update(caption.missing)
    heading.warn()
    return png(np.asarray(whole), text)


def _block(block: Block, heading: Lettering, caption: Lettering, side: int | None, widest: int) -> Image.Image:
    """Return a heading with its items below it, as many in a row as fit."""
    made = [_item(item, caption, side) for item in block.items]
    columns = max(1, min(len(made), (widest - 2 * MARGIN + APART) // (made[0].width + APART)))
    rows = [made[n : n + columns] for n in range(0, len(made), columns)]
    width = columns * (made[0].width + APART) - APART
    lines = heading.wrapped(block.heading, width) if block.heading else []
    top = len(lines) * heading.line + (4 if lines else 0)
    height = top + sum(max(item.height for item in row) + APART // 2 for row in rows) - APART // 2
    image = Image.new("RGB", (width, height), GROUND)
    for n, line in enumerate(lines):
        heading.write(image, (0, n * heading.line), line, INK)
    for row in rows:
        tallest = max(item.height for item in row)
        for column, item in enumerate(row):
            image.paste(item, (column * (item.width + APART), top + tallest - item.height))
        top += tallest + APART // 2
    return image


def _item(item: Item, caption: Lettering, side: int | None) -> Image.Image:
    """Return the item's pictures side by side, with their captions above them."""
    shown = [_resized(picture, side) for picture in item.pictures]
    lines = [caption.wrapped(text, picture.width) for text, picture in zip(item.captions, shown, strict=True)]
    head = max(map(len, lines)) * caption.line + (2 if any(lines) else 0)
    width = sum(picture.width + GAP for picture in shown) - GAP
    image = Image.new("RGB", (width, head + max(picture.height for picture in shown)), GROUND)
    left = 0
    for picture, text in zip(shown, lines, strict=True):
        for n, line in enumerate(text):
            caption.write(image, (left, head - 2 - (len(text) - n) * caption.line), line, FAINT)
        image.paste(picture, (left, head))
        left += picture.width + GAP
    return image


def _resized(picture: Pixels, side: int | None) -> Image.Image:
    image = Image.fromarray(picture)
    width = side or min(LARGEST, max(SMALLEST, image.width))
    if width == image.width:
        return image
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)


def rows_png(rows: Sequence[tuple[str, Pictures]], side: int = 128) -> bytes:
    """Return a PNG with one row for each batch of pictures `[n, height, width, 3]`, its label (if any) above."""
    lettering = Lettering(HEADING)
    strips = [_strip(label, pictures, side, lettering) for label, pictures in rows]
    width = max(strip.width for strip in strips)
    whole = Image.new("RGB", (width + 2 * MARGIN, sum(s.height + GAP for s in strips) - GAP + 2 * MARGIN), GROUND)
    top = MARGIN
    for strip in strips:
        whole.paste(strip, (MARGIN, top))
        top += strip.height + GAP
    lettering.warn()
    return png(np.asarray(whole))


def _strip(label: str, pictures: Pictures, side: int, lettering: Lettering) -> Image.Image:
    shown = [_resized(picture, side) for picture in pictures]
    width = sum(picture.width + GAP for picture in shown) - GAP
    lines = lettering.wrapped(label, max(width, NARROWEST))
    head = len(lines) * lettering.line + (4 if lines else 0)
    across = max([width, *(int(lettering.width(line)) + 1 for line in lines)])
    image = Image.new("RGB", (across, head + max(picture.height for picture in shown)), GROUND)
    for n, line in enumerate(lines):
        lettering.write(image, (0, n * lettering.line), line, INK)
    for n, picture in enumerate(shown):
        image.paste(picture, (n * (side + GAP), head))
    return image
