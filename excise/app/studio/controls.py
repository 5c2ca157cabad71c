"""Controls that several tabs have: the prompt, the seed, a slider of an amount, two pictures under one handle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr


def prompt_box(tab: str, text: str) -> gr.Textbox:
    """Return the prompt of a tab that generates one picture."""
    return gr.Textbox(
        text, label="Prompt", info="Press Enter to generate.", lines=1, max_lines=6, elem_id=f"{tab}-prompt"
    )


def seed_box(tab: str, label: str = "Seed") -> gr.Number:
    """Return the seed of a tab."""
    return gr.Number(7, label=label, precision=0, minimum=0, elem_id=f"{tab}-seed")


def amount_slider(elem_id: str, least: float, most: float, step: float, label: str, info: str) -> gr.Slider:
    """Return a slider of an amount, which begins at 1."""
    return gr.Slider(least, most, 1, step=step, label=label, info=info, buttons=[], elem_id=elem_id)


def two_pictures(tab: str, label: str) -> gr.ImageSlider:
    """Return two pictures under one handle, the unchanged one to the left."""
    return gr.ImageSlider(
        label=label, format="png", buttons=["fullscreen"], interactive=False, elem_id=f"{tab}-pictures"
    )


def generates(
    how: dict[str, Any], name: str, go: gr.Button, prompt: gr.Textbox, changes: Sequence[Callable[..., Any]]
) -> None:
    """Run a handler for a button, for Enter in the prompt, and for changes: only the last of them counts.

    Args:
        how: Options of the events: the handler, its inputs and outputs.
        name: The handler's name for Gradio's client.
        go: The button.
        prompt: The prompt.
        changes: Events of other components, such as `slider.change`.
    """
    go.click(**how, api_name=name)
    prompt.submit(**how, api_visibility="private")
    for changed in changes:
        changed(**how, trigger_mode="always_last", show_progress="minimal", api_visibility="private")
