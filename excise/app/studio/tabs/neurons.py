"""Tab "Neurons": search the database, and turn any neuron up or down."""

from __future__ import annotations

from typing import Any

import gradio as gr

from excise.app.erase.finding import token_codes
from excise.app.studio.answers import ON_MODEL, Answer, enlarged, guarded, html
from excise.app.studio.choosing import Choice
from excise.app.studio.controls import amount_slider, generates, prompt_box, seed_box, two_pictures
from excise.app.studio.readings import Comparison, NeuronReading, TokenCode, Verdict, cut_note
from excise.app.studio.steering import CONTEXTS, checked_neuron, known, site_of, turn_down, turn_up
from excise.app.studio.studio import Studio, checked_prompt, checked_seed, checked_strength
from excise.errors import ExciseError, InvalidSetting
from excise.neurons.database.database import NeuronDatabase
from excise.neurons.database.entry import Entry

FOUND = 12
"""Neurons listed."""
LEAST, MOST = -1.0, 2.0
"""Ends of the slider: all that the neuron writes is removed, or twice its usual peak is added."""


def tab(studio: Studio, choice: Choice, page: gr.Blocks) -> None:
    """Add the tab's components to the page, and what they do."""
    gr.HTML(html("lead", "Look a neuron up, and turn it down or up in one prompt. Nothing is saved."))
    first = next((edit.neurons[0] for one in studio.candidates.values() for edit in one.eraser.text_edits), 0)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            words = gr.Textbox(
                label="Search the database",
                info="Words of an explanation, tag or prompt, or a number. Press Enter."
                if studio.database
                else "No database was named: start the studio with --neurons neurons.db.",
                lines=1,
                interactive=studio.database is not None,
                elem_id="neurons-words",
            )
            listed = gr.Radio([], label="Neurons found", visible=False, elem_id="neurons-found")
            neuron = gr.Number(first, label="Neuron", precision=0, minimum=0, elem_id="neurons-number")
            prompt = prompt_box("neurons", "a cat on grass")
            amount = amount_slider(
                "neurons-amount",
                LEAST,
                MOST,
                0.1,
                "Down or up",
                "-1 removes what it writes in this prompt. 1 adds its usual peak everywhere.",
            )
            seed = seed_box("neurons")
            go = gr.Button("Turn it", variant="primary", elem_id="neurons-go")
        with gr.Column(scale=3, min_width=300):
            notice = gr.HTML(elem_id="neurons-notice")
            pictures = two_pictures("neurons", "As it is | turned")
            outcome = gr.HTML(elem_id="neurons-verdict")
            codes = gr.HTML(elem_id="neurons-codes")
            about = gr.HTML(elem_id="neurons-about")

    def search(words: str) -> Answer:
        if studio.database is None:
            raise InvalidSetting("no neuron database was named; start the studio with --neurons neurons.db")
        with NeuronDatabase.open(studio.database) as database:
            found = database.search(checked_prompt(words), FOUND)
        if not found:
            raise InvalidSetting(f"no neuron matches “{' '.join(words.split())}”; try other words")
        choices = [(_label(entry), entry.index) for entry in found]
        return {listed: gr.update(choices=choices, value=None, visible=True)}

    def show(neuron: float) -> Answer:
        return {about: _about(studio, checked_neuron(studio, neuron))}

    def turn(neuron: float, prompt: str, amount: float, seed: float) -> Answer:
        number, text = checked_neuron(studio, neuron), checked_prompt(prompt)
        by, start = checked_strength(amount, LEAST, MOST), checked_seed(seed)
        with studio.lock:
            asked = None if by == 0 else turn_up(studio, text, number) if by > 0 else turn_down(studio, text, number)
            if asked is None:
                plain = studio.plain(text, start)
                seen = Comparison(plain, plain, 0)
            else:
                seen = studio.compare(asked.eraser, text, start, -by, amplify=True)
            reading = _reading(studio, text, number)
        return {
            pictures: (enlarged(seen.before), enlarged(seen.after)),
            outcome: html("verdict", _verdict(number, by, seen, reading), cut_note(studio.pipe, text)),
            codes: html("codes", [reading], steered=True),
            about: _about(studio, number),
        }

    shown = [pictures, outcome, codes]
    how: Any = {
        "fn": guarded(turn, notice, shown),
        "inputs": [neuron, prompt, amount, seed],
        "outputs": [*shown, about, notice],
        **ON_MODEL,
    }
    generates(how, "turn", go, prompt, (amount.change,))
    words.submit(guarded(search, notice, [listed]), [words], [listed, notice], api_name="search")
    listed.input(lambda chosen: chosen, [listed], [neuron], api_visibility="private").then(
        guarded(show, notice, [about]), [neuron], [about, notice], **ON_MODEL, api_name="neuron"
    )


def _label(entry: Entry) -> str:
    tags = ", ".join(tag.concept for tag in entry.tags)
    words = entry.explanation.text if entry.explanation else tags or " ".join(entry.top_tokens(4))
    return f"{entry.index}: {words[:60]}"


def _about(studio: Studio, neuron: int) -> str:
    """Return what is known about a neuron, or why nothing is."""
    try:
        entry, corpus = known(studio, neuron)
    except ExciseError as error:  # it never fires on the database's corpus
        return html("lead", f"{str(error).rstrip('.')}.")
    return html("neuron", entry, corpus, CONTEXTS)


def _reading(studio: Studio, prompt: str, neuron: int) -> NeuronReading:
    site = site_of(studio)
    found = token_codes(studio.pipe, studio.sae, site, prompt, neuron)
    peak = max((code for _, code in found), default=0.0)
    tokens = tuple(TokenCode(text, code, code > 0, code / (peak or 1.0)) for text, code in found)
    return NeuronReading(neuron, site.key, 0.0, peak, peak > 0, tokens)


def _verdict(neuron: int, by: float, seen: Comparison, reading: NeuronReading) -> Verdict:
    fires = f"It fires in this prompt, up to {reading.peak:.2f}." if reading.fires else "It is silent in this prompt."
    if by == 0:
        did = f"Neuron {neuron} is as it was."
    elif by > 0:
        did = f"Neuron {neuron} is turned up: {by:g} times its usual peak is added to every text state."
    elif reading.fires:
        did = f"Neuron {neuron} is turned down: {-by:.0%} of what it writes in this prompt is removed."
    else:
        did = f"There is nothing of neuron {neuron} to turn down."
    return Verdict((seen.badge,), f"{fires} {did} The picture is {seen.words}.")
