"""Tab "What it leaves alone": neighbours and controls, and how many of their pictures are identical."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import gradio as gr

from excise.app.audit.inputs import benign_prompts, concept_of, words_for
from excise.app.studio.answers import ON_MODEL, Answer, guarded, html, png_of
from excise.app.studio.choosing import Choice
from excise.app.studio.controls import seed_box
from excise.app.studio.studio import Studio, checked_lines, checked_seed
from excise.concepts.concept import mentioned
from excise.concepts.everyday import everyday
from excise.erasers import Eraser

EACH = 3
"""Prompts of each group."""
OWN = 12
"""Most prompts of the visitor's own at once."""


@dataclass(frozen=True)
class Group:
    """Prompts that belong together, and why they are tried."""

    title: str
    why: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Shown:
    """A prompt's picture without and with the eraser, as PNG."""

    prompt: str
    before: bytes
    after: bytes
    identical: bool
    rows: int


def groups_for(studio: Studio, eraser: Eraser) -> list[Group]:
    """Return prompts that the eraser should leave alone: neighbours, controls, and prompts about anything.

    Neighbours are known for the bundled model's own objects and styles. Prompts about anything are those named at the
    start, else the bundled model's captions or everyday prompts.
    """
    found = []
    if studio.bundled:
        found += _neighbours(eraser.concept)
    controls = concept_of(eraser).controls
    few = controls[:: max(1, len(controls) // EACH)][:EACH]
    found.append(Group("Controls", "worded as the prompts it was made with, about other things", tuple(few)))
    words = words_for(eraser, bundled=studio.bundled)
    if studio.bundled or studio.benign is not None:
        benign = benign_prompts(words, studio.benign, bundled=studio.bundled, count=EACH)
        found.append(Group("Anything else", benign.source, benign.prompts))
    else:
        own = [word.text for word in words]
        some = tuple(islice((text for text in everyday(100) if mentioned(text, own) is None), EACH))
        found.append(Group("Anything else", "everyday prompts", some))
    return [group for group in found if group.prompts]


def _neighbours(concept: str) -> list[Group]:
    from excise.bench.canvas.words import NEAR
    from excise.reference.world import OBJECTS, STYLES

    kinds = STYLES if concept in STYLES else OBJECTS
    if concept not in kinds:
        return []
    at = kinds.index(concept)  # the lists are in order of kind
    near = sorted((name for name in kinds if name != concept), key=lambda name: abs(kinds.index(name) - at))[:EACH]
    form = "a cat in the {} style" if kinds is STYLES else "{} {} on grass"
    kin = tuple(form.format(name) if kinds is STYLES else form.format(_article(name), name) for name in near)
    shared = tuple(f"{_article(name)} {name} on grass" for name in NEAR[concept][:EACH])
    return [
        Group("Its neighbours", "the most similar things that the model knows", kin),
        Group(
            "Other things with its name", "the concept's word in another meaning: an eraser may act on these", shared
        ),
    ]


def _article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def tab(studio: Studio, choice: Choice, page: gr.Blocks) -> None:
    """Add the tab's components to the page, and what they do."""
    gr.HTML(html("lead", "Prompts that do not ask for the concept. Where the eraser does not fire, no bit changes."))
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            eraser = choice.dropdown("untouched-eraser")
            own = gr.Textbox(
                label="Your own prompts",
                info=f"One a line, {OWN} at most. They are tried first.",
                lines=3,
                max_lines=OWN,
                elem_id="untouched-own",
            )
            seed = seed_box("untouched")
            go = gr.Button("Try them", variant="primary", elem_id="untouched-go")
            stop = gr.Button("Stop", elem_id="untouched-stop")
        with gr.Column(scale=3, min_width=300):
            notice = gr.HTML(elem_id="untouched-notice")
            gallery = gr.HTML(elem_id="untouched-gallery")

    def untouched(eraser: str, own: str, seed: float, made: Any) -> Iterator[Answer]:
        chosen, number = studio.candidate(eraser, made).eraser, checked_seed(seed)
        groups = groups_for(studio, chosen)
        if lines := checked_lines(own, OWN):
            groups.insert(0, Group("Your own", "as you wrote them", tuple(lines)))
        total = sum(len(group.prompts) for group in groups)
        done: list[tuple[Group, list[Shown]]] = []
        yield {gallery: html("gallery", done, total)}
        for group in groups:
            done.append((group, []))
            for prompt in group.prompts:
                seen = studio.compare(chosen, prompt, number)
                shown = Shown(prompt, png_of(seen.before), png_of(seen.after), seen.identical, seen.rows)
                done[-1][1].append(shown)
                yield {gallery: html("gallery", done, total)}

    running = go.click(
        guarded(untouched, notice, [gallery]),
        [eraser, own, seed, choice.made],
        [gallery, notice],
        **ON_MODEL,
        show_progress="minimal",
        api_name="untouched",
    )
    stop.click(None, cancels=[running], api_visibility="private")
