"""Tab "Erase": one prompt and seed, without the eraser and with it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from excise.app.studio.answers import ON_MODEL, Answer, enlarged, guarded, html
from excise.app.studio.choosing import Choice
from excise.app.studio.controls import amount_slider, generates, prompt_box, seed_box, two_pictures
from excise.app.studio.readings import cut_note, verdict
from excise.app.studio.studio import STRONGEST, Studio, checked_prompt, checked_seed, checked_strength


def tab(studio: Studio, choice: Choice, page: gr.Blocks) -> None:
    """Add the tab's components to the page, and what they do."""
    first = next(iter(studio.candidates.values()), None)
    gr.HTML(
        html("lead", "One prompt and one seed, without the eraser and with it. Drag the handle to compare."),
        elem_id="erase-lead",
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            prompt = prompt_box("erase", "" if first is None else f"a {first.eraser.concept} on grass")
            eraser = choice.dropdown("erase-eraser")
            strength = amount_slider(
                "erase-strength", 0, STRONGEST, 0.05, "Strength", "1 is the fitted strength, 0 changes nothing."
            )
            seed = seed_box("erase")
            go = gr.Button("Generate", variant="primary", elem_id="erase-go")
        with gr.Column(scale=3, min_width=300):
            notice = gr.HTML(elem_id="erase-notice")
            pictures = two_pictures("erase", "Without | with the eraser")
            outcome = gr.HTML(elem_id="erase-verdict")
            codes = gr.HTML(elem_id="erase-codes")

    def erase(prompt: str, seed: float, eraser: str, strength: float, made: Any) -> Answer:
        text, number, amount = checked_prompt(prompt), checked_seed(seed), checked_strength(strength)
        chosen = studio.candidate(eraser, made).eraser
        seen = studio.compare(chosen, text, number, amount)
        readings = studio.read(chosen, text)
        return {
            pictures: (enlarged(seen.before), enlarged(seen.after)),
            outcome: html("verdict", verdict(chosen, readings, seen, amount), cut_note(studio.pipe, text, chosen)),
            codes: html("codes", readings),
        }

    shown = [pictures, outcome, codes]
    how: Any = {
        "fn": guarded(erase, notice, shown),
        "inputs": [prompt, seed, eraser, strength, choice.made],
        "outputs": [*shown, notice],
        **ON_MODEL,
    }
    generates(how, "erase", go, prompt, (strength.change, eraser.input))
    if first is not None:
        page.load(**how, show_progress="minimal", api_visibility="private")
