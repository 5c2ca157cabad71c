"""Tab "Compare": several erasers on the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from excise.app.studio.answers import ON_MODEL, Answer, guarded, html, png_of
from excise.app.studio.choosing import Choice
from excise.app.studio.controls import seed_box
from excise.app.studio.studio import Studio, checked_lines, checked_seed
from excise.drawn import Pixels
from excise.errors import InvalidSetting

PROMPTS, ERASERS, SEEDS = 4, 6, 4
"""Most prompts, erasers and seeds at once."""


@dataclass(frozen=True)
class Cell:
    """A picture as PNG, what the bundled judge recognises in it, and whether it equals the one without an eraser."""

    png: bytes
    shows: str
    identical: bool | None = None


@dataclass(frozen=True)
class Row:
    """A prompt and seed: the picture without an eraser, then one for each eraser."""

    prompt: str
    seed: int
    cells: list[Cell]


def recognised(studio: Studio, picture: Pixels) -> str:
    """Return what the bundled model's judge recognises in a picture; empty for another model, which has no judge."""
    if not studio.bundled:
        return ""
    from excise import reference
    from excise.reference.world import OBJECTS

    flags = reference.judge()(np.asarray(picture)[None]).objects[0]
    return ", ".join(name for name, seen in zip(OBJECTS, flags, strict=True) if seen) or "nothing it knows"


def tab(studio: Studio, choice: Choice, page: gr.Blocks) -> None:
    """Add the tab's components to the page, and what they do."""
    gr.HTML(html("lead", "Several erasers on the same prompts, from the same seeds. They may be of different methods."))
    first = next(iter(studio.candidates.values()), None)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            erasers = choice.checkboxes("compare-erasers")
            prompts = gr.Textbox(
                "" if first is None else f"a {first.eraser.concept} on grass\na cat on grass",
                label="Prompts",
                info=f"One a line, {PROMPTS} at most.",
                lines=3,
                max_lines=PROMPTS,
                elem_id="compare-prompts",
            )
            count = gr.Slider(1, SEEDS, 2, step=1, label="Pictures of each prompt", buttons=[], elem_id="compare-count")
            seed = seed_box("compare", "First seed")
            go = gr.Button("Compare", variant="primary", elem_id="compare-go")
            stop = gr.Button("Stop", elem_id="compare-stop")
        with gr.Column(scale=3, min_width=300):
            notice = gr.HTML(elem_id="compare-notice")
            table = gr.HTML(elem_id="compare-table")

    def compare(erasers: list[str], prompts: str, count: float, seed: float, made: Any) -> Iterator[Answer]:
        names = list(dict.fromkeys(erasers or ()))
        if not names:
            raise InvalidSetting("choose an eraser")
        if len(names) > ERASERS:
            raise InvalidSetting(f"there are {len(names)} erasers; {ERASERS} are the most at once")
        chosen = [studio.candidate(name, made).eraser for name in names]
        texts, start = checked_lines(prompts, PROMPTS), checked_seed(seed)
        if not texts:
            raise InvalidSetting("write a prompt first")
        if count not in range(1, SEEDS + 1):
            raise InvalidSetting(f"there are 1 to {SEEDS} pictures of each prompt")
        rows: list[Row] = []
        total = len(texts) * int(count)
        for prompt in texts:
            for number in range(start, start + int(count)):
                cells: list[Cell] = []
                for eraser in chosen:
                    seen = studio.compare(eraser, prompt, number)
                    if not cells:
                        cells.append(Cell(png_of(seen.before), recognised(studio, seen.before)))
                    cells.append(Cell(png_of(seen.after), recognised(studio, seen.after), seen.identical))
                rows.append(Row(prompt, number, cells))
                heads = [(name, one.method) for name, one in zip(names, chosen, strict=True)]
                yield {table: html("comparison", heads, rows, total)}

    running = go.click(
        guarded(compare, notice, [table]),
        [erasers, prompts, count, seed, choice.made],
        [table, notice],
        **ON_MODEL,
        show_progress="minimal",
        api_name="compare",
    )
    stop.click(None, cancels=[running], api_visibility="private")
