"""Tab "Erase": one prompt and seed, without the eraser and with it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from excise.app.studio.answers import ON_MODEL, Answer, enlarged, guarded, html
from excise.app.studio.choosing import Choice
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
            prompt = gr.Textbox(
                "" if first is None else f"a {first.eraser.concept} on grass",
                label="Prompt",
                info="Press Enter to generate.",
                lines=1,
                max_lines=6,
                elem_id="erase-prompt",
            )
            eraser = choice.dropdown("erase-eraser")
            strength = gr.Slider(
                0,
                STRONGEST,
                1,
                step=0.05,
                label="Strength",
                info="1 is the fitted strength, 0 changes nothing.",
                buttons=[],
                elem_id="erase-strength",
            )
            seed = gr.Number(7, label="Seed", precision=0, minimum=0, elem_id="erase-seed")
            go = gr.Button("Generate", variant="primary", elem_id="erase-go")
        with gr.Column(scale=3, min_width=300):
            notice = gr.HTML(elem_id="erase-notice")
            pictures = gr.ImageSlider(
                label="Without | with the eraser",
                format="png",
                buttons=["fullscreen"],
                interactive=False,
                elem_id="erase-pictures",
            )
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
    go.click(**how, api_name="erase")
    prompt.submit(**how, api_visibility="private")
    for changed in (strength.change, eraser.input):
        changed(**how, trigger_mode="always_last", show_progress="minimal", api_visibility="private")
    if first is not None:
        page.load(**how, show_progress="minimal", api_visibility="private")
