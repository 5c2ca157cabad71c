"""Tab "Find": from words to a ranking of neurons, to an eraser that the visitor can download and try."""

from __future__ import annotations

import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gradio as gr

from excise.app.erase.finding import Findings, find_neurons, fit_eraser, settings
from excise.app.models.resolve import KINDS, concept_named
from excise.app.studio.answers import ON_MODEL, Answer, guarded, html, offered
from excise.app.studio.choosing import Choice
from excise.app.studio.studio import Candidate, Studio, checked_prompt
from excise.concepts import names as known_concepts
from excise.erasers.artefact import strength
from excise.errors import InvalidSetting, WeakEraserError

TOP = 8
"""Neurons shown."""
KEPT = 4
"""Rankings kept, so that making an eraser need not rank again."""
MOST_MADE = 8
"""Erasers that a visitor can make."""


def tab(studio: Studio, choice: Choice, page: gr.Blocks) -> None:
    """Add the tab's components to the page, and what they do."""
    gr.HTML(html("lead", "Which neurons fire with a concept and not without it? Make an eraser of the first one."))
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            words = gr.Textbox(
                label="Words for the concept",
                info="The first one names it. Separate others by commas.",
                placeholder="gun, pistol",
                lines=1,
                elem_id="find-words",
            )
            kind = gr.Radio(list(KINDS), value="object", label="The words name", elem_id="find-kind")
            go = gr.Button("Find neurons", variant="primary", elem_id="find-go")
            weak = gr.Checkbox(False, label="Accept a weak eraser", info="It is marked as weak.", elem_id="find-weak")
            make = gr.Button("Make the eraser", elem_id="find-make")
            download = gr.DownloadButton("Download the eraser", visible=False, elem_id="find-download")
        with gr.Column(scale=3, min_width=300):
            notice = gr.HTML(elem_id="find-notice")
            ranking = gr.HTML(elem_id="find-ranking")
            result = gr.HTML(elem_id="find-made")

    rankings: OrderedDict[tuple[str, str], Findings] = OrderedDict()

    def ranked(words: str, kind: str) -> Findings:
        key = (checked_prompt(words), kind)
        with studio.lock:
            if (found := rankings.pop(key, None)) is None:
                found = _find(studio, *key)
            rankings[key] = found
            while len(rankings) > KEPT:
                rankings.popitem(last=False)
        return found

    def find(words: str, kind: str) -> Answer:
        return {ranking: html("ranking", ranked(words, kind)), result: ""}

    def erase(words: str, kind: str, weak: bool, made: Any) -> Answer:
        if len(made) >= MOST_MADE:
            raise InvalidSetting(f"you have made {MOST_MADE} erasers, the most for one visit; open the page again")
        found = ranked(words, kind)
        with studio.alone() as pipe:
            eraser = fit_eraser(pipe, found)
        if eraser.weak and not weak:
            raise WeakEraserError(
                f"the eraser of {eraser.concept!r} cannot be relied on: {'; '.join(eraser.weak)}; choose other words, "
                "or accept a weak eraser"
            )
        folder = Path(tempfile.mkdtemp(dir=studio.scratch)) / "eraser"
        eraser.save(folder)
        name = f"{eraser.name} (made here)"
        while name in made:
            name += "'"
        everyone = {**made, name: Candidate(eraser, folder)}
        edit = eraser.edits[0]
        how = strength.in_words(edit.coefficient[1], edit.site.key, eraser.created, eraser.measured)
        return {
            ranking: html("ranking", found),
            result: html("made", name, eraser, how),
            download: offered(download, _zipped(folder)),
            choice.made: everyone,
            **choice.updated(everyone, name),
        }

    how: Any = {
        "fn": guarded(find, notice, [ranking, result]),
        "inputs": [words, kind],
        "outputs": [ranking, result, notice],
        **ON_MODEL,
    }
    go.click(**how, api_name="find")
    words.submit(**how, api_visibility="private")
    choice.when_complete(
        lambda others: make.click(
            guarded(erase, notice, [result]),
            [words, kind, weak, choice.made],
            [ranking, result, download, choice.made, *others, notice],
            **ON_MODEL,
            api_name="make",
        )
    )


def _find(studio: Studio, words: str, kind: str) -> Findings:
    listed = [word.strip() for word in words.split(",") if word.strip()]
    if not listed:
        raise InvalidSetting("write a word for the concept first")
    known = len(listed) == 1 and listed[0] in known_concepts()
    concept = concept_named(listed[0], None if known else ",".join(listed), None, kind)
    studio.sae  # noqa: B018  says what is missing
    with studio.alone() as pipe:
        return find_neurons(pipe, concept, settings(pipe, sae=studio.sae_folder), TOP)


def _zipped(folder: Path) -> Path:
    """Return a new zip file of an eraser's folder, which `excise verify` and `load_eraser` read once it is unpacked."""
    return Path(shutil.make_archive(str(folder), "zip", root_dir=folder.parent, base_dir=folder.name))
