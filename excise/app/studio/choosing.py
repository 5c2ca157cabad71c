"""The choice of an eraser in several tabs, which a visitor's own erasers join."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from excise.app.studio.studio import Candidate, Studio


class Choice:
    """Drop-downs of erasers that have the same choices: those named at the start, and those that the visitor made."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self.made = gr.State({})
        """The visitor's erasers, as `Candidate` by name. Others do not see them."""
        self.components: list[Any] = []
        self._waiting: list[Callable[[list[Any]], object]] = []

    def dropdown(self, elem_id: str) -> gr.Dropdown:
        """Add a drop-down of one eraser."""
        names = list(self._studio.candidates)
        made = gr.Dropdown(names, value=names[0] if names else None, label="Eraser", filterable=False, elem_id=elem_id)
        self.components.append(made)
        return made

    def checkboxes(self, elem_id: str) -> gr.CheckboxGroup:
        """Add boxes of several erasers."""
        names = list(self._studio.candidates)
        made = gr.CheckboxGroup(names, value=names, label="Erasers", elem_id=elem_id)
        self.components.append(made)
        return made

    def when_complete(self, act: Callable[[list[Any]], object]) -> None:
        """Call `act` with all drop-downs and boxes once every tab has added its own."""
        self._waiting.append(act)

    def complete(self) -> None:
        """Say that every tab has added its own."""
        for act in self._waiting:
            act(self.components)

    def updated(self, made: Mapping[str, Candidate], chosen: str) -> dict[Any, Any]:
        """Return updates of all drop-downs and boxes, with `chosen` selected."""
        names = [*self._studio.candidates, *made]
        return {
            one: gr.update(choices=names, value=names if isinstance(one, gr.CheckboxGroup) else chosen)
            for one in self.components
        }
