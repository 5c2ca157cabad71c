"""Tab "Audit": red flags in plain words, and what no eraser can stop."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from excise.app.audit.audit import Plan
from excise.app.audit.inputs import benign_prompts, concept_of, saes_of, words_for
from excise.app.audit.page import OUTCOMES
from excise.app.audit.page import render as render_page
from excise.app.studio.answers import ON_MODEL, Answer, guarded, html, offered
from excise.app.studio.choosing import Choice
from excise.app.studio.studio import Studio
from excise.errors import InvalidSetting
from excise.files import write_atomic

COUNTS = {"200 (about a minute)": 200, "2,000 (several minutes)": 2000}
LIMITS = (
    "Whoever holds the weights can detach the eraser. No file can prevent that.",
    "A prompt can mean the concept without making the neuron fire: a description, a rare synonym, or words that a "
    "search found. Their number is measured, not guaranteed.",
    "The concept can enter without text: in a picture as input, or through a ControlNet.",
    "Fine-tuning can teach the denoiser the concept under another word. A LoRA on the denoiser is not refused.",
    "A second stage, such as a refiner or an upscaler, needs an eraser of its own.",
)
"""What no eraser can stop, in short. docs/explanation/threat-model.md has all of it."""
PASSED = {
    "no bite": "It changes what its concept becomes",
    "altered rows": "Its rows are those of the SAE that it names",
    "altered weights": "Its weights are what its method gives",
    "not caught": "It catches the words for the concept",
    "touches too much": "It leaves prompts about other things alone",
    "protected group": "It leaves neutral sentences about groups of people alone",
    "structural": "Its neuron is about the concept, not about how a sentence is built",
    "polysemantic": "Its neuron has one meaning",
    "split": "No other neuron carries the concept",
}
"""What each check asks, as the sentence that is true if it is passed."""
TOP = 6
"""Lines of evidence shown of each flag."""


def tab(studio: Studio, choice: Choice, page: gr.Blocks) -> None:
    """Add the tab's components to the page, and what they do."""
    gr.HTML(html("lead", "What else the eraser changes, and which words for the concept get past it."))
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            eraser = choice.dropdown("audit-eraser")
            given = gr.Textbox(
                label="Further words it must catch",
                info="Separated by commas.",
                placeholder="rifle, musket",
                lines=1,
                elem_id="audit-words",
            )
            count = gr.Radio(
                list(COUNTS), value=next(iter(COUNTS)), label="Prompts that it must leave alone", elem_id="audit-count"
            )
            go = gr.Button("Audit", variant="primary", elem_id="audit-go")
            whole = gr.DownloadButton("Download the whole report", visible=False, elem_id="audit-download")
        with gr.Column(scale=3, min_width=300):
            notice = gr.HTML(elem_id="audit-notice")
            flags = gr.HTML(elem_id="audit-flags")
            gr.HTML(html("limits", LIMITS), elem_id="audit-limits")

    def audit(eraser: str, given: str, count: str, made: Any, progress: Any = gr.Progress()) -> Answer:  # noqa: B008
        candidate = studio.candidate(eraser, made)
        if count not in COUNTS:
            raise InvalidSetting("choose how many prompts to try")
        if not studio.bundled and studio.benign is None:
            raise InvalidSetting(
                "an audit needs prompts that do not mention the concept; start the studio with --prompts FILE"
            )
        words = words_for(
            candidate.eraser, [word.strip() for word in (given or "").split(",") if word.strip()],
            bundled=studio.bundled,
        )  # fmt: skip
        benign = benign_prompts(words, studio.benign, bundled=studio.bundled, count=COUNTS[count])
        named = None if studio.bundled else studio.sae_folder
        saes = saes_of(candidate.eraser, named, pipe=studio.pipe, bundled=studio.bundled)
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            progress(min(1.0, done / plan.steps), desc="Reading prompts")

        with studio.alone() as pipe:
            plan = Plan(
                candidate.eraser,
                pipe,
                concept_of(candidate.eraser),
                words,
                benign,
                saes,
                candidate.folder,
                ("excise", "app"),
            )
            found = plan.run(advance)
        folder = Path(tempfile.mkdtemp(dir=studio.scratch))
        file = folder / f"audit-{candidate.eraser.digest[:8]}.html"
        write_atomic(file, render_page(found, studio.device))
        return {
            flags: html("audit", found, OUTCOMES, PASSED, TOP),
            whole: offered(whole, file),
        }

    go.click(
        guarded(audit, notice, [flags]),
        [eraser, given, count, choice.made],
        [flags, whole, notice],
        **ON_MODEL,
        api_name="audit",
    )
