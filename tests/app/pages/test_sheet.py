"""Sheets: pictures side by side, labels wrapped, small pictures enlarged smoothly, large ones reduced."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from excise.app.pages.lettering import Lettering
from excise.app.pages.sheet import APART, CAPTION, GAP, HEADING, MARGIN, Block, Item, rows_png, sheet

RED, BLUE = (200, 0, 0), (0, 0, 200)


def plain(colour: tuple[int, int, int], side: int = 64) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


def opened(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def where(pixels: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, width and height of what has a colour."""
    rows, columns = np.nonzero((pixels == colour).all(-1))
    return columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1


def test_before_and_after_stand_side_by_side_at_a_readable_size() -> None:
    pixels = opened(sheet([Block("a gun", [Item([plain(RED), plain(BLUE)], ["unerased", "gun erased"])])]))
    before, after = where(pixels, RED), where(pixels, BLUE)
    assert before[2:] == after[2:] == (256, 256)
    assert after[0] == before[0] + 256 + GAP and after[1] == before[1]
    letters = HEADING and (Lettering(HEADING).line + 4, Lettering(CAPTION).line + 2)
    assert before[:2] == (MARGIN, MARGIN + sum(letters))


def test_large_pictures_are_made_smaller_and_a_stated_side_is_kept() -> None:
    big = Block("", [Item([plain(RED, 1024)], [""])])
    assert where(opened(sheet([big])), RED) == (MARGIN, MARGIN, 512, 512)
    assert where(opened(sheet([big], side=100)), RED)[2:] == (100, 100)


def test_enlarging_is_smooth() -> None:
    edge = np.concatenate([plain((0, 0, 0)), plain((255, 255, 255))], 1)[:, 32:96]
    pixels = opened(sheet([Block("", [Item([edge], [""])])], side=256))
    between = {int(v) for v in pixels[MARGIN + 128, MARGIN : MARGIN + 256, 0]} - {0, 255}
    assert len(between) >= 2


def test_a_long_label_is_wrapped_and_moves_the_pictures_of_its_row_alike() -> None:
    label = "the look of old photographs, faded and brown erased"
    pixels = opened(sheet([Block("", [Item([plain(RED), plain(BLUE)], ["unerased", label])])]))
    lines = Lettering(CAPTION).wrapped(label, 256)
    assert len(lines) == 2
    assert where(pixels, RED)[1] == where(pixels, BLUE)[1] == MARGIN + 2 * Lettering(CAPTION).line + 2


def test_narrow_blocks_share_a_row_and_wide_ones_begin_another() -> None:
    blocks = [Block("a", [Item([plain(RED)], [""])]), Block("b", [Item([plain(BLUE)], [""])])]
    beside = opened(sheet(blocks))
    assert where(beside, BLUE)[0] == where(beside, RED)[0] + 256 + APART
    below = opened(sheet(blocks, widest=300))
    assert where(below, BLUE)[0] == where(below, RED)[0] and where(below, BLUE)[1] > where(below, RED)[1] + 256


def test_text_is_in_the_file() -> None:
    png = sheet([Block("a", [Item([plain(RED)], [""])])], {"excise": '{"seed": 1}', "Description": "草の上の猫"})
    with Image.open(io.BytesIO(png)) as image:
        assert image.info["excise"] == '{"seed": 1}' and image.info["Description"] == "草の上の猫"


def test_rows_of_a_figure_keep_their_label_whole() -> None:
    label = "Top-1, λ = " + "   ".join(f"{n / 10:g}" for n in range(60))
    pixels = opened(rows_png([(label, np.stack([plain(RED)] * 2)), ("", np.stack([plain(BLUE)] * 2))]))
    left, top, _, _ = where(pixels, RED)
    assert left == MARGIN and top > MARGIN + 2 * Lettering(HEADING).line
    assert where(pixels, BLUE)[1] == top + 128 + GAP


def test_pictures_of_a_row_are_in_line_whatever_their_captions_take() -> None:
    items = [
        Item([plain(RED)], ["short"]),
        Item([plain(BLUE)], ["a caption that is long enough for two lines at least"]),
    ]
    pixels = opened(sheet([Block("", items)]))
    assert where(pixels, RED)[1] == where(pixels, BLUE)[1]
