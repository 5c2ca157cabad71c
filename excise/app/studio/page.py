"""The studio's page: its tabs, and its look."""

from __future__ import annotations

from typing import Any

import gradio as gr

from excise.app.pages.rendering import stylesheet
from excise.app.studio.answers import html
from excise.app.studio.choosing import Choice
from excise.app.studio.studio import Studio
from excise.app.studio.tabs import audit, compare, erase, find, neurons, untouched

QUEUE = 8
"""Visitors' requests that may wait; more are refused. One is worked on at a time."""
CACHE_SECONDS = 600
"""Age at which files of pictures are deleted; the page has shown them by then. Downloads stay."""
TABS = {
    "Erase": erase.tab,
    "What it leaves alone": untouched.tab,
    "Compare": compare.tab,
    "Audit": audit.tab,
    "Find": find.tab,
    "Neurons": neurons.tab,
}


def build(studio: Studio) -> gr.Blocks:
    """Return the page. `look` says how it is to be mounted."""
    with gr.Blocks(title="Excise studio", analytics_enabled=False, delete_cache=(CACHE_SECONDS, CACHE_SECONDS)) as page:
        facts = [("model", studio.model), ("steps", str(studio.steps))]
        gr.HTML(html("heading", facts), elem_id="heading")
        choice = Choice(studio)
        with gr.Tabs(elem_id="tabs"):
            for name, add in TABS.items():
                with gr.Tab(name, id=name, elem_id=f"tab-{name.lower().replace(' ', '-')}"):
                    add(studio, choice, page)
        choice.complete()
    page.queue(max_size=QUEUE, default_concurrency_limit=1)
    return page


def look() -> dict[str, Any]:
    """Return the theme and the stylesheet. Fonts are the visitor's own: nothing is fetched."""
    sans = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
    theme = gr.themes.Base(font=sans, font_mono=mono, radius_size="lg", text_size="md")
    for name, value in _VARIABLES.items():
        setattr(theme, name, value)
        setattr(theme, f"{name}_dark", value)  # the stylesheet's colours know the dark mode themselves
    colours = f"<style>{stylesheet('colours.css')}</style>"
    return {"theme": theme, "head": colours, "css": stylesheet("studio.css")}


_VARIABLES = {
    "body_background_fill": "var(--ground)",
    "body_text_color": "var(--ink)",
    "body_text_color_subdued": "var(--faint)",
    "background_fill_primary": "var(--card)",
    "background_fill_secondary": "var(--soft)",
    "block_background_fill": "var(--card)",
    "block_border_color": "var(--line)",
    "block_info_text_color": "var(--faint)",
    "block_label_background_fill": "var(--card)",
    "block_label_border_color": "var(--line)",
    "block_label_text_color": "var(--faint)",
    "block_title_text_color": "var(--ink)",
    "border_color_primary": "var(--line)",
    "border_color_accent": "var(--accent)",
    "color_accent": "var(--accent)",
    "color_accent_soft": "var(--soft)",
    "panel_background_fill": "var(--ground)",
    "input_background_fill": "var(--soft)",
    "input_background_fill_focus": "var(--card)",
    "input_border_color": "var(--mute)",
    "input_border_color_focus": "var(--accent)",
    "input_placeholder_color": "var(--faint)",
    "button_primary_background_fill": "var(--accent)",
    "button_primary_background_fill_hover": "var(--accent)",
    "button_primary_text_color": "var(--on-accent)",
    "button_primary_border_color": "var(--accent)",
    "button_primary_border_color_hover": "var(--accent)",
    "button_secondary_background_fill": "var(--card)",
    "button_secondary_background_fill_hover": "var(--soft)",
    "button_secondary_text_color": "var(--ink)",
    "button_secondary_border_color": "var(--mute)",
    "button_secondary_border_color_hover": "var(--ink)",
    "button_border_width": "1px",
    "slider_color": "var(--accent)",
    "link_text_color": "var(--cool)",
    "checkbox_background_color_selected": "var(--accent)",
    "checkbox_border_color_selected": "var(--accent)",
    "checkbox_label_background_fill": "var(--card)",
    "checkbox_label_background_fill_selected": "var(--soft)",
    "checkbox_label_text_color": "var(--ink)",
    "checkbox_label_text_color_selected": "var(--ink)",
    "checkbox_label_border_color": "var(--line)",
}
"""The theme's colours, from those of all pages (excise/app/pages/templates/colours.css)."""
